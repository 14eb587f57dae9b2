//! `anabranch-coordinator`.

fn main() -> std::process::ExitCode {
    anabranch_coordinator::cli::main(std::env::args_os())
}
