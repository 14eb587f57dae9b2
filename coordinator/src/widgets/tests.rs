//! Drawing widgets as text.

use ratatui::buffer::Buffer;
use ratatui::layout::Rect;
use ratatui::widgets::Widget;

/// Returns what a widget draws, without the spaces at the ends of lines.
pub(crate) fn text_of(widget: impl Widget, width: u16, height: u16) -> String {
    let mut buffer = Buffer::empty(Rect::new(0, 0, width, height));
    widget.render(buffer.area, &mut buffer);
    lines_of(&buffer)
}

/// Returns what is in a buffer, without the spaces at the ends of lines and the empty lines at the end.
pub(crate) fn lines_of(buffer: &Buffer) -> String {
    let mut lines = Vec::new();
    for y in buffer.area.top()..buffer.area.bottom() {
        let mut line = String::new();
        let mut behind = 0;
        for x in buffer.area.left()..buffer.area.right() {
            let symbol = buffer[(x, y)].symbol();
            // The cell behind a wide character is not drawn.
            if behind > 0 {
                behind -= 1;
                continue;
            }
            line.push_str(symbol);
            behind = super::text::width(symbol).saturating_sub(1);
        }
        lines.push(line.trim_end().to_owned());
    }
    lines.join("\n").trim_end().to_owned()
}
