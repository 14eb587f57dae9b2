//! Requests about the tokens of the operator's page.

use anabranch_common::token::PagePermission;
use anabranch_common::wire::operator::RegistryRequest;

pub(super) fn requests() -> Vec<RegistryRequest> {
    vec![
        RegistryRequest::PageTokenCreate {
            name: Some("anna".into()),
            ttl_ms: 3_600_000,
            permission: PagePermission::Operate,
            secret_digest: [0xBB; 32],
        },
        RegistryRequest::PageTokenCreate {
            name: None,
            ttl_ms: 1_000,
            permission: PagePermission::View,
            secret_digest: [0xCC; 32],
        },
        RegistryRequest::PageTokenList,
        RegistryRequest::PageTokenRevoke { id: "bbaaccdd".into() },
    ]
}
