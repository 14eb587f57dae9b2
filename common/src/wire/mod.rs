//! What travels: frames ([`frame`]), the messages in them ([`message`]), how two versions agree ([`handshake`]), and
//! how bulk data is cut into chunks ([`transfer`]), which runs there are ([`runs`]), and what `doctor` asks ([`probe`]). `docs/protocol.md` draws every layout.

pub mod frame;
pub mod handshake;
pub mod message;
pub mod operator;
pub mod pod;
pub mod probe;
pub mod runs;
pub mod transfer;
