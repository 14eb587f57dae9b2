//! How long a certificate is still valid.

use super::{Finding, span_text};
use crate::exit::ExitCode;
use crate::tls;

/// First and last moment of a certificate's life, Unix time in milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Life {
    /// First moment.
    pub from_ms: u64,
    /// Last moment.
    pub until_ms: u64,
}

/// What to do about a certificate.
#[derive(Debug, Clone, Copy)]
pub struct Remedies<'a> {
    /// Where it has expired.
    pub expired: &'a str,
    /// Where less than a third of its life is left.
    pub ends_soon: &'a str,
}

impl Life {
    /// Returns the life of a certificate (DER).
    ///
    /// # Errors
    /// Not a certificate.
    pub fn of(certificate_der: &[u8]) -> Result<Self, tls::ParseCertificateError> {
        let (from_s, until_s) = tls::validity(certificate_der)?;
        let ms = |seconds: i64| u64::try_from(seconds).unwrap_or(0).saturating_mul(1000);
        Ok(Self { from_ms: ms(from_s), until_ms: ms(until_s) })
    }

    /// Returns whether the certificate is valid at `now_ms`.
    #[must_use]
    pub fn holds(self, now_ms: u64) -> bool {
        (self.from_ms..=self.until_ms).contains(&now_ms)
    }

    /// Judges the life at `now_ms`, which is the time of a clock that is `whose`.
    #[must_use]
    pub fn judge(self, check: &'static str, now_ms: u64, whose: &str, remedies: Remedies<'_>) -> Finding {
        let Self { from_ms, until_ms } = self;
        let finding = if now_ms < from_ms {
            let ahead = span_text(from_ms - now_ms);
            let measured = format!("valid only in {ahead}, at {whose} clock");
            Finding::failure(
                check,
                ExitCode::Clock,
                measured,
                "set that clock (NTP): certificates are never issued for later",
            )
        } else if now_ms > until_ms {
            let since = span_text(now_ms - until_ms);
            Finding::failure(check, ExitCode::Clock, format!("expired {since} ago, at {whose} clock"), remedies.expired)
        } else {
            let left = until_ms - now_ms;
            let measured = format!("valid for another {} of {}", span_text(left), span_text(until_ms - from_ms));
            // Certificates are renewed after two thirds of their life.
            if left < (until_ms - from_ms) / 3 {
                Finding::warning(check, measured, remedies.ends_soon)
            } else {
                Finding::ok(check, measured)
            }
        };
        finding.figure("valid_from_ms", from_ms).figure("valid_until_ms", until_ms)
    }
}

#[cfg(test)]
mod tests {
    use super::super::Outcome;
    use super::*;

    #[test]
    fn the_last_third_of_a_life_is_told_and_its_end_fails() {
        const DAY: u64 = 86_400_000;
        let life = Life { from_ms: 10 * DAY, until_ms: 40 * DAY };
        let remedies = Remedies { expired: "join again", ends_soon: "start the agent" };
        let at = |now_ms| life.judge("certificate", now_ms, "this machine's", remedies);
        assert_eq!(at(15 * DAY).outcome, Outcome::Ok);
        assert_eq!(at(30 * DAY).outcome, Outcome::Ok);
        let late = at(30 * DAY + 1);
        assert_eq!((late.outcome, late.advice.as_deref()), (Outcome::Warning, Some("start the agent")));
        assert_eq!(late.measured, "valid for another 9 days of 30 days");
        let expired = at(43 * DAY);
        assert_eq!((expired.exit_code, expired.advice.as_deref()), (Some(12), Some("join again")));
        assert_eq!(expired.measured, "expired 3 days ago, at this machine's clock");
        assert_eq!(at(7 * DAY).measured, "valid only in 3 days, at this machine's clock");
        assert!(at(7 * DAY).has_failed() && !life.holds(7 * DAY) && life.holds(40 * DAY));
    }
}
