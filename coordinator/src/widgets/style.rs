//! Colours, none of which carries a meaning alone: what they mark is a word, or has a sign.

use anabranch_common::status::RunStanding;
use ratatui::buffer::Buffer;
use ratatui::style::{Color, Modifier, Style};

use crate::overview::agents::Doing;

/// Titles, names of columns.
pub(crate) const HEADING: Style = Style::new().add_modifier(Modifier::BOLD);
/// What is read last.
pub(crate) const QUIET: Style = Style::new().add_modifier(Modifier::DIM);
/// The line that keys act on.
pub(crate) const SELECTED: Style = Style::new().add_modifier(Modifier::REVERSED);
/// What goes on as it should.
pub(crate) const WELL: Style = Style::new().fg(Color::Green);
/// What waits, or is worth a look.
pub(crate) const WAITS: Style = Style::new().fg(Color::Yellow);
/// What needs the operator.
pub(crate) const BAD: Style = Style::new().fg(Color::Red);
/// What is over, and curves.
pub(crate) const CALM: Style = Style::new().fg(Color::Cyan);

/// Returns the style of the word for what a run does.
pub(crate) fn standing(standing: RunStanding) -> Style {
    match standing {
        RunStanding::Running => WELL,
        RunStanding::Opening | RunStanding::Pending | RunStanding::Paused | RunStanding::Parked => WAITS,
        RunStanding::Finished => CALM,
        RunStanding::Failed => BAD,
    }
}

/// Returns the style of the word for what an agent does.
pub(crate) fn doing(doing: Doing) -> Style {
    match doing {
        Doing::Failing | Doing::Refused => BAD,
        Doing::Slow | Doing::Away => WAITS,
        Doing::Training => WELL,
        Doing::Connected => Style::new(),
        Doing::Revoked => QUIET,
    }
}

/// Whether the environment asks for no colours: `NO_COLOR` with any value but an empty one (no-color.org).
#[must_use]
pub fn is_colourless() -> bool {
    std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty())
}

/// Takes the colours out of what was drawn. Bold, dim and reversed text stays so.
pub fn remove_colours(buffer: &mut Buffer) {
    for cell in &mut buffer.content {
        (cell.fg, cell.bg) = (Color::Reset, Color::Reset);
    }
}

#[cfg(test)]
mod tests {
    use ratatui::layout::Rect;

    use super::*;

    #[test]
    fn without_colours_the_words_and_their_weight_stay() {
        let mut buffer = Buffer::empty(Rect::new(0, 0, 8, 1));
        buffer.set_string(0, 0, "failing", BAD.add_modifier(Modifier::BOLD));
        remove_colours(&mut buffer);
        assert_eq!(buffer[(0, 0)].symbol(), "f");
        assert_eq!((buffer[(0, 0)].fg, buffer[(0, 0)].modifier), (Color::Reset, Modifier::BOLD));
    }
}
