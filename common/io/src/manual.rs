//! Manual pages of a command line: one for the program, and one for each verb.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use clap::Command;
use clap_mangen::Man;
use clap_mangen::roff::{Roff, roman};

/// A manual page in section 1.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Page {
    /// Name of its file, such as `anabranch-agent-join.1`.
    pub file: String,
    /// The page as roff.
    pub roff: String,
}

/// A manual page cannot be written.
#[derive(Debug, thiserror::Error)]
#[error("{} cannot be written", path.display())]
pub struct ManualError {
    /// The file or folder.
    pub path: PathBuf,
    /// The system's error.
    pub source: io::Error,
}

/// Returns the manual pages of a program: its own page first, then those of the verbs that its help shows, in that order.
#[must_use]
pub fn pages(program: Command) -> Vec<Page> {
    let mut program = program.disable_help_subcommand(true);
    program.build();
    let mut pages = Vec::new();
    add(&program, None, &mut pages);
    pages
}

/// Writes the manual pages of a program into a folder, which is made if it is missing. Returns the number of pages.
///
/// # Errors
/// The folder or a file in it cannot be written.
pub fn write(program: Command, dir: &Path) -> Result<usize, ManualError> {
    let unwritable = |path: &Path| {
        let path = path.to_owned();
        |source| ManualError { path, source }
    };
    fs::create_dir_all(dir).map_err(unwritable(dir))?;
    let pages = pages(program);
    for page in &pages {
        let path = dir.join(&page.file);
        fs::write(&path, &page.roff).map_err(unwritable(&path))?;
    }
    Ok(pages.len())
}

fn add(command: &Command, parent: Option<&str>, pages: &mut Vec<Page>) {
    let name = command.get_display_name().unwrap_or_else(|| command.get_name());
    pages.push(Page { file: format!("{name}.1"), roff: render(command, parent) });
    for verb in command.get_subcommands().filter(|verb| !verb.is_hide_set()) {
        add(verb, Some(name), pages);
    }
}

/// Returns one page. The notes that follow a command's help keep their lines, because examples and tables are among them.
fn render(command: &Command, parent: Option<&str>) -> String {
    let version = env!("CARGO_PKG_VERSION");
    // A date that is not empty: roff would take the next argument for it.
    let page = Man::new(command.clone()).date(" ").source(format!("Anabranch {version}")).manual("Anabranch");
    let mut bytes = Vec::new();
    let mut sections = || {
        page.render_title(&mut bytes)?;
        page.render_name_section(&mut bytes)?;
        page.render_synopsis_section(&mut bytes)?;
        page.render_description_section(&mut bytes)?;
        page.render_options_section(&mut bytes)?;
        if command.get_subcommands().any(|verb| !verb.is_hide_set()) {
            page.render_subcommands_section(&mut bytes)?;
        }
        rest(command, parent).to_writer(&mut bytes)
    };
    sections().expect("memory takes every byte");
    String::from_utf8(bytes).expect("help is UTF-8, and roff adds ASCII")
}

/// Returns the sections that clap's generator has no shape for.
fn rest(command: &Command, parent: Option<&str>) -> Roff {
    let mut roff = Roff::new();
    if let Some(notes) = command.get_after_long_help().or_else(|| command.get_after_help()) {
        roff.control("SH", ["NOTES"]).control("nf", []);
        for line in notes.to_string().lines() {
            roff.text([roman(line)]);
        }
        roff.control("fi", []);
    }
    if let Some(parent) = parent {
        roff.control("SH", ["SEE ALSO"]).text([roman(format!("{parent}(1)"))]);
    }
    roff
}

#[cfg(test)]
mod tests {
    use clap::Arg;

    use super::*;

    fn program() -> Command {
        let verb = Command::new("go").about("Goes").after_help("Example:\n  program go \\\n      .far");
        let inner = Command::new("list").about("Lists").arg(Arg::new("all").long("all").help("Everything"));
        Command::new("program")
            .about("Does")
            .subcommand(verb)
            .subcommand(Command::new("secret").hide(true))
            .subcommand(Command::new("group").about("Groups").subcommand(inner))
    }

    #[test]
    fn each_verb_that_the_help_shows_has_a_page() {
        let files: Vec<String> = pages(program()).into_iter().map(|page| page.file).collect();
        assert_eq!(files, ["program.1", "program-go.1", "program-group.1", "program-group-list.1"]);
    }

    /// Guards examples: filled lines could not be copied, and an unescaped dot or backslash would be a command to roff.
    #[test]
    fn notes_keep_their_lines() {
        let page = pages(program()).into_iter().nth(1).expect("the page of `go`").roff;
        let title = format!(".TH program-go 1 \" \" \"Anabranch {}\" Anabranch\n", env!("CARGO_PKG_VERSION"));
        assert!(page.contains(&title), "{page}");
        let notes = ".nf\nExample:\n  program go \\\\\n      .far\n.fi\n.SH \"SEE ALSO\"\nprogram(1)\n";
        assert!(page.ends_with(notes), "{page}");
    }

    #[test]
    fn pages_are_written_into_a_folder_that_need_not_be_there() {
        let dir = tempfile::tempdir().expect("a folder");
        let out = dir.path().join("man/man1");
        assert_eq!(write(program(), &out).expect("written"), 4);
        let page = fs::read_to_string(out.join("program-group-list.1")).expect("a page");
        assert!(page.contains("\\-\\-all") && page.contains("program\\-group(1)"), "{page}");
        let blocked = out.join("program.1");
        let error = write(program(), &blocked).expect_err("a file is in the way").to_string();
        assert_eq!(error, format!("{} cannot be written", blocked.display()));
    }
}
