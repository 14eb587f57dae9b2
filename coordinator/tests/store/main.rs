//! Promises P1 to P4 and P7 at the level of the store: whatever is killed, torn, damaged or full, recovery gives the
//! bytes of an uninterrupted replay, or refuses and says where.

mod apart;
mod average;
mod crash;
mod damage;
mod disk;
mod engine;
mod fleet;
mod history;
mod object;
mod recorded;
mod rest;
mod retention;
mod rollback;
mod track;
