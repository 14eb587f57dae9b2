//! Splitting a shard of text: whole files where there are enough of them, stretches of bytes where there are not.

use std::collections::BTreeMap;
use std::fs;
use std::ops::Range;
use std::path::Path;

use super::ShardError;
use super::draw::{Draw, Purpose};
use super::source::{TextFiles, part_name};
use super::split::{PartReport, Partial, Skew, SplitOptions, SplitReport, TextPart, write_file};
use super::text::{Text, examples};

/// Name of a part's file where files were cut.
const CUT_FILE: &str = "part.txt";

/// A file to be written for an agent: its name, and which bytes of the text.
type Piece = (String, Range<usize>);

/// Splits text into `out/agent-0`, `out/agent-1`, ...: files are dealt out in an order drawn from the seed, each to the
/// agent that has fewest bytes so far; with fewer files than agents, or none but tiny ones for an agent, each gets as
/// many bytes in a row.
pub(super) fn split(source: &TextFiles, out: &Path, options: &SplitOptions) -> Result<SplitReport, ShardError> {
    let refuse = |what: String| Err(ShardError::Split { path: source.root.clone(), what });
    if options.skew != Skew::Iid {
        return refuse("text has no labels that alpha could share out: split it evenly (--iid)".to_owned());
    }
    if options.eval_rows.is_some() {
        return refuse("text has no rows to keep apart: put files for evaluation aside by hand".to_owned());
    }
    let text = Text::read(source)?;
    let (length, least) = (text.bytes().len(), options.min_examples.max(2));
    if options.agents == 0 || length < least.saturating_mul(options.agents) {
        let agents = options.agents;
        return refuse(format!("it holds {length} bytes, too few for {agents} agents with at least {least} each"));
    }
    let size = |part: &Vec<Piece>| part.iter().map(|(_, range)| range.len() + 1).sum::<usize>() - 1;
    let mut draw = Draw::new(options.seed, Purpose::Split);
    let dealt = deal(&text, options.agents, &mut draw).filter(|parts| parts.iter().all(|part| size(part) >= least));
    let parts = dealt.unwrap_or_else(|| cut(length, options.agents, &mut draw));

    let partial = Partial::new(out)?;
    let mut report = SplitReport { agents: Vec::new(), eval: None };
    for (agent, part) in parts.iter().enumerate() {
        let name = format!("agent-{agent}");
        for (file, range) in part {
            put(&partial.path().join(&name).join(file), &text.bytes()[range.clone()])?;
        }
        let bytes = size(part);
        let text = Some(TextPart { files: part.len() as u64, bytes: bytes as u64 });
        let examples = examples(bytes) as u64;
        report.agents.push(PartReport { path: out.join(name), examples, labels: BTreeMap::new(), text });
    }
    partial.finish(out)?;
    Ok(report)
}

/// Whole files to each agent, or `None` where there are fewer files than agents.
fn deal(text: &Text, agents: usize, draw: &mut Draw) -> Option<Vec<Vec<Piece>>> {
    let mut start = 0;
    let mut files: Vec<Piece> = Vec::with_capacity(text.files().len());
    for file in text.files() {
        let end = start + usize::try_from(file.bytes).expect("it is in memory");
        files.push((part_name(&file.name), start..end));
        // The separator is in between.
        start = end + 1;
    }
    if files.len() < agents {
        return None;
    }
    draw.shuffle(&mut files);
    let mut parts = vec![(0, Vec::new()); agents];
    for file in files {
        let poorest = parts.iter_mut().min_by_key(|(bytes, files): &&mut (usize, Vec<Piece>)| (*bytes, files.len()));
        let (bytes, files) = poorest.expect("there is an agent");
        *bytes += file.1.len();
        files.push(file);
    }
    Some(parts.into_iter().map(|(_, files)| files).collect())
}

/// A stretch of bytes to each agent; the seed says which gets which.
fn cut(length: usize, agents: usize, draw: &mut Draw) -> Vec<Vec<Piece>> {
    let mut order: Vec<usize> = (0..agents).collect();
    draw.shuffle(&mut order);
    let bound = |part: usize| {
        let exact = length as u128 * part as u128 / agents as u128;
        usize::try_from(exact).expect("at most the length")
    };
    order.into_iter().map(|part| vec![(CUT_FILE.to_owned(), bound(part)..bound(part + 1))]).collect()
}

fn put(path: &Path, bytes: &[u8]) -> Result<(), ShardError> {
    let folder = path.parent().unwrap_or(path);
    fs::create_dir_all(folder).map_err(|error| ShardError::io(folder, error))?;
    write_file(path, bytes)
}
