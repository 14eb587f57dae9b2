//! Accuracy or loss over time.

use anabranch_common::journal::Aggregate;
use anabranch_common::limits;
use anabranch_common::status::TimedAggregate;
use ratatui::buffer::Buffer;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::symbols::Marker;
use ratatui::text::Line;
use ratatui::widgets::{Axis, Chart, Dataset, GraphType, Widget};

use super::style::{CALM, HEADING, QUIET};
use super::text::fit;
use crate::commands::span;
use crate::overview::words::thinned;

/// Both curves stand beside each other from this width on.
const BOTH: u16 = 72;
/// A curve has axes from this height and width on.
const AXES: (u16, u16) = (4, 24);

/// A figure of measurements.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Measure {
    /// The share of examples that the model tells right.
    Accuracy,
    /// Nats an example; of text, nats a byte.
    Loss,
}

impl Measure {
    /// Returns its name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Accuracy => "accuracy",
            Self::Loss => "loss",
        }
    }

    /// Returns the figure of a measurement: percent, or nats.
    #[must_use]
    pub fn of(self, aggregate: &Aggregate) -> f64 {
        match self {
            Self::Accuracy => 100.0 * aggregate.accuracy,
            Self::Loss => aggregate.loss,
        }
    }

    /// Returns a figure as people read it.
    #[must_use]
    pub fn text(self, value: f64) -> String {
        match self {
            Self::Accuracy => format!("{value:.2} %"),
            Self::Loss => format!("{value:.4}"),
        }
    }

    /// Returns the other one.
    #[must_use]
    pub fn other(self) -> Self {
        match self {
            Self::Accuracy => Self::Loss,
            Self::Loss => Self::Accuracy,
        }
    }

    /// Returns the ends of the axis for figures between two.
    fn axis(self, least: f64, most: f64) -> [f64; 2] {
        match self {
            Self::Accuracy => [((least / 10.0).floor() * 10.0).clamp(0.0, 90.0), 100.0],
            Self::Loss if most > 0.0 && least >= 0.0 => [0.0, most],
            Self::Loss => [least, least + 1.0],
        }
    }

    fn label(self, value: f64) -> String {
        match self {
            Self::Accuracy => format!("{value:.0} %"),
            Self::Loss => format!("{value:.2}"),
        }
    }
}

/// The curve of a figure over the time since a run began.
#[derive(Debug)]
pub struct Curve<'a> {
    aggregates: &'a [TimedAggregate],
    measure: Measure,
}

impl<'a> Curve<'a> {
    /// Makes the curve of measurements, oldest first.
    #[must_use]
    pub fn new(aggregates: &'a [TimedAggregate], measure: Measure) -> Self {
        Self { aggregates, measure }
    }

    /// Returns name and newest figure.
    fn title(&self) -> String {
        let name = self.measure.name();
        let newest = self.aggregates.last().map(|timed| {
            let figure = self.measure.text(self.measure.of(&timed.aggregate));
            format!("{name} {figure} at version {}", timed.aggregate.version)
        });
        newest.unwrap_or_else(|| format!("{name}: no evaluation yet"))
    }

    fn points(&self) -> Vec<(f64, f64)> {
        let point = |timed: &TimedAggregate| (timed.at_s, self.measure.of(&timed.aggregate));
        let points = thinned(self.aggregates, limits::PAGE_POINTS).map(point);
        points.filter(|(at_s, figure)| at_s.is_finite() && figure.is_finite()).collect()
    }
}

impl Widget for Curve<'_> {
    fn render(self, area: Rect, buffer: &mut Buffer) {
        if area.is_empty() {
            return;
        }
        let title = fit(&self.title(), usize::from(area.width));
        buffer.set_string(area.x, area.y, title, HEADING);
        let area = Rect { y: area.y + 1, height: area.height - 1, ..area };
        let points = self.points();
        let (Some(first), Some(last)) = (points.first(), points.last()) else { return };
        if area.is_empty() {
            return;
        }
        let figures = points.iter().map(|(_, figure)| *figure);
        let (least, most) = (figures.clone().fold(f64::INFINITY, f64::min), figures.fold(f64::NEG_INFINITY, f64::max));
        let [low, high] = self.measure.axis(least, most);
        let dataset = Dataset::default().marker(Marker::Braille).style(CALM).data(&points);
        let dataset = if points.len() > 1 { dataset.graph_type(GraphType::Line) } else { dataset };
        let (mut x_axis, mut y_axis) = (
            Axis::default().bounds([first.0.min(0.0), last.0.max(first.0 + 1.0)]),
            Axis::default().bounds([low, high]),
        );
        if area.height >= AXES.0 && area.width >= AXES.1 {
            x_axis = x_axis.labels(["0 s".to_owned(), span(last.0)]).style(QUIET);
            y_axis = y_axis.labels([low, high].map(|figure| self.measure.label(figure))).style(QUIET);
        }
        Chart::new(vec![dataset]).x_axis(x_axis).y_axis(y_axis).legend_position(None).render(area, buffer);
    }
}

/// Both curves where there is room beside each other, one of them elsewhere.
#[derive(Debug)]
pub struct Curves<'a> {
    aggregates: &'a [TimedAggregate],
    first: Measure,
}

impl<'a> Curves<'a> {
    /// Makes curves of measurements, oldest first. `first` is the one that is drawn where there is no room for both.
    #[must_use]
    pub fn new(aggregates: &'a [TimedAggregate], first: Measure) -> Self {
        Self { aggregates, first }
    }
}

impl Widget for Curves<'_> {
    fn render(self, area: Rect, buffer: &mut Buffer) {
        let Self { aggregates, first } = self;
        if area.width < BOTH || aggregates.is_empty() {
            return Curve::new(aggregates, first).render(area, buffer);
        }
        let [left, right] = Layout::horizontal([Constraint::Fill(1); 2]).spacing(2).areas(area);
        Curve::new(aggregates, first).render(left, buffer);
        Curve::new(aggregates, first.other()).render(right, buffer);
    }
}

/// Shares of a character cell, from nothing to all of it.
const EIGHTHS: [char; 9] = [' ', '▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];

/// Returns a bar of that share of a character cell; what is there at all is seen.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "within 0 to 8")]
fn bar(share: f64) -> char {
    let eighths = (share.clamp(0.0, 1.0) * 8.0).round() as usize;
    EIGHTHS[if share > 0.0 { eighths.max(1) } else { eighths }]
}

/// Returns accuracies, oldest first, as one bar each.
pub(crate) fn spark(aggregates: &[TimedAggregate], columns: usize) -> String {
    thinned(aggregates, columns.min(limits::PAGE_SPARK_POINTS)).map(|timed| bar(timed.aggregate.accuracy)).collect()
}

/// Returns one bar for each number of versions that merged updates were stale; nothing before the first.
pub(crate) fn staleness(histogram: &[u64]) -> Option<Line<'static>> {
    let used = histogram.iter().rposition(|count| *count > 0)? + 1;
    let most = histogram.iter().max().copied().unwrap_or(1).max(1);
    let bars: String = histogram[..used].iter().map(|count| bar(*count as f64 / most as f64)).collect();
    let words = format!("  of merged updates, 0 to {} versions", used - 1);
    Some(Line::from(vec![ratatui::text::Span::styled(bars, CALM), ratatui::text::Span::raw(words)]))
}

#[cfg(test)]
mod tests {
    use super::super::tests::text_of;
    use super::*;
    use crate::overview::tests::measured;

    fn climbing() -> Vec<TimedAggregate> {
        (0..=90).step_by(10).map(measured).collect()
    }

    #[test]
    fn a_curve_has_its_newest_figure_and_both_stand_side_by_side_where_there_is_room() {
        insta::assert_snapshot!(text_of(Curves::new(&climbing(), Measure::Accuracy), 80, 8));
        let narrow = text_of(Curves::new(&climbing(), Measure::Loss), 40, 8);
        assert!(narrow.starts_with("loss 0.0110 at version 90") && !narrow.contains("accuracy"), "{narrow}");
    }

    #[test]
    fn any_measurements_fit_any_terminal() {
        let mut odd = vec![measured(1), measured(2)];
        (odd[0].aggregate.loss, odd[1].aggregate.loss) = (f64::NAN, -3.0);
        for aggregates in [vec![], vec![measured(5)], vec![measured(5); 3], odd, climbing()] {
            for (width, height) in [(0, 0), (1, 1), (10, 2), (24, 4), (40, 12), (200, 50)] {
                text_of(Curves::new(&aggregates, Measure::Accuracy), width, height);
                text_of(Curves::new(&aggregates, Measure::Loss), width, height);
            }
        }
        assert!(text_of(Curves::new(&[], Measure::Loss), 40, 5).contains("no evaluation yet"));
    }

    #[test]
    fn the_axis_of_accuracy_is_whole_and_that_of_loss_begins_at_nothing() {
        assert_eq!(Measure::Accuracy.axis(34.5, 60.0), [30.0, 100.0]);
        assert_eq!(Measure::Accuracy.axis(100.0, 100.0), [90.0, 100.0]);
        assert_eq!(Measure::Loss.axis(0.5, 2.0), [0.0, 2.0]);
        assert_eq!(Measure::Loss.axis(0.0, 0.0), [0.0, 1.0]);
    }

    #[test]
    fn bars_rise_with_what_they_stand_for() {
        let line = staleness(&[10, 8, 1, 0, 0]).expect("bars");
        assert_eq!(line.to_string(), "█▆▁  of merged updates, 0 to 2 versions");
        assert_eq!(staleness(&[0, 0]), None);
        assert_eq!(spark(&climbing(), 4), " ▂▅▇");
    }
}
