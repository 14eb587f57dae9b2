//! Columns that are left out: each of them has to be in one of the shards of an agent.

use std::path::PathBuf;

use super::columns::listing;
use super::csv::Table;
use super::source::Source;
use super::{ShardError, ShardOptions};

/// Checks that each of `options.drop_columns` is a column of `source` or of `other`, the agent's other shard.
///
/// # Errors
/// Neither has such a column, or a header cannot be read.
pub(super) fn check(source: &Source, other: Option<&Source>, options: &ShardOptions) -> Result<(), ShardError> {
    let Some(first) = options.drop_columns.first() else { return Ok(()) };
    let header = ShardOptions { columns: None, ..options.clone() };
    let mut tables: Vec<(PathBuf, Vec<String>)> = Vec::new();
    let mut without = Vec::new();
    for source in [Some(source), other].into_iter().flatten() {
        match source {
            Source::Csv(path) => tables.push((path.clone(), Table::open(path, &header)?.columns().all().to_vec())),
            Source::Idx { images, .. } => without.push((images.clone(), "IDX")),
            Source::Text(text) => without.push((text.root.clone(), "text")),
        }
    }
    let Some(((path, columns), more)) = tables.split_first() else {
        let (path, format) = without.swap_remove(0);
        return Err(ShardError::NoColumns { path, format, wanted: first.clone() });
    };
    let is_absent = |name: &&String| tables.iter().all(|(_, columns)| !columns.contains(name));
    let Some(wanted) = options.drop_columns.iter().find(is_absent) else { return Ok(()) };
    let tables = more.iter().map(|(path, columns)| (path, format!("whose columns are {}", listing(columns))));
    let without = without.iter().map(|(path, format)| (path, format!("which is {format}")));
    let other = tables.chain(without).map(|(path, what)| format!("; nor has {}, {what}", path.display())).collect();
    Err(ShardError::DropColumn { path: path.clone(), wanted: wanted.clone(), columns: listing(columns), other })
}
