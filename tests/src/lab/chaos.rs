//! The verbs with real processes under fire.

use std::path::PathBuf;

use anabranch_tests::chaos::{self, Options, Scorecard};
use anabranch_tests::kills;
use clap::Args;

/// Where results go.
#[derive(Debug, Args)]
pub(crate) struct Output {
    /// Seed of everything drawn at random
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Write the scorecard as JSON to this file
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Write the scorecard as one HTML page with a timeline to this file
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    /// Do not say each fault as it happens
    #[arg(long)]
    brief: bool,
}

pub(crate) fn run(files: &[PathBuf], output: &Output) -> anyhow::Result<bool> {
    anyhow::ensure!(
        files.len() == 1 || (output.json.is_none() && output.html.is_none()),
        "--json and --html are for one scenario at a time"
    );
    let mut failed = Vec::new();
    for file in files {
        let command = format!("anabranch-lab chaos {} --seed {}", file.display(), output.seed);
        let options = Options {
            lab: kills::this_binary()?,
            scenario: chaos::read(file)?,
            name: chaos::name_of(file),
            seed: output.seed,
            command,
            verbose: !output.brief,
        };
        let card = chaos::run(&options)?;
        if !finish(&card, output)? {
            failed.push(options.name);
        }
    }
    if files.len() > 1 {
        println!("{} of {} scenarios passed", files.len() - failed.len(), files.len());
    }
    Ok(failed.is_empty())
}

pub(crate) fn soak(hours: f64, output: &Output) -> anyhow::Result<bool> {
    anyhow::ensure!(hours.is_finite() && hours > 0.0, "--hours must be above 0");
    let options = Options {
        lab: kills::this_binary()?,
        scenario: chaos::soak::scenario(hours)?,
        name: "soak".to_owned(),
        seed: output.seed,
        command: format!("anabranch-lab soak --hours {hours} --seed {}", output.seed),
        verbose: !output.brief,
    };
    let card = chaos::soak::run(&options)?;
    finish(&card, output)
}

fn finish(card: &Scorecard, output: &Output) -> anyhow::Result<bool> {
    card.print();
    card.write(output.json.as_deref(), output.html.as_deref())?;
    Ok(card.report.pass)
}
