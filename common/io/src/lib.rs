//! What both daemons share and what is not pure: durable sled, QUIC framing, TLS, control socket, logging.
