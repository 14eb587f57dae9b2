//! What every codec, every merge rule and everything else that has bytes must do, whatever it is given.

mod codecs;
mod merges;
mod round_trips;
