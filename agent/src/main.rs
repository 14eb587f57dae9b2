//! The agent's binary: everything is in the library, so that other programs can run it too.

use std::process::ExitCode;

fn main() -> ExitCode {
    anabranch_agent::cli::main(std::env::args_os())
}
