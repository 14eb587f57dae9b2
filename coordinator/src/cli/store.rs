//! Arguments of `store`.

use anabranch_io::cli::OutputArgs;
use clap::Subcommand;

#[derive(Debug, Subcommand)]
pub(crate) enum StoreVerb {
    /// Let writers race for keys, and say whether a run may be stored there
    ///
    /// Creates and deletes keys below check/. Credentials come from the environment, as for `run`.
    #[command(after_help = "Example:
  anabranch-coordinator store check s3://training/wards

Exit code 6 where the store may not be used.")]
    Check {
        /// The store: s3://BUCKET/PREFIX, gs://BUCKET/PREFIX, az://CONTAINER/PREFIX or file:///DIR
        #[arg(value_name = "URL")]
        url: String,
        /// Writers that race for each key
        #[arg(long, value_name = "N", default_value_t = 8)]
        writers: u32,
        /// Keys that they race for
        #[arg(long, value_name = "N", default_value_t = 100)]
        races: u32,
        #[command(flatten)]
        output: OutputArgs,
    },
    /// Copy a run between a directory and an object store, and compare the two
    ///
    /// The coordinator must be stopped. The target must be empty; the source is left as it is. Afterwards set `url` in [store]
    /// of run.toml, or take it out, and remove the store that is not used any more.
    #[command(after_help = "Examples:
  anabranch-coordinator store copy trainer s3://training/wards
  anabranch-coordinator store copy s3://training/wards trainer")]
    Copy {
        /// Directory of a run (its store/ is copied), or the address of an object store
        #[arg(value_name = "FROM")]
        from: String,
        /// The same
        #[arg(value_name = "TO")]
        to: String,
        #[command(flatten)]
        output: OutputArgs,
    },
}
