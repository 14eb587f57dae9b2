//! A measure over time, as SVG.

use std::ops::Range;
use std::path::Path;

use anyhow::anyhow;
use plotters::prelude::*;

const SIZE: (u32, u32) = (960, 480);
const LINE: RGBColor = RGBColor(0x1f, 0x6f, 0xb4);
const FAINT: RGBColor = RGBColor(0xdd, 0xe3, 0xe8);
const INK: RGBColor = RGBColor(0x33, 0x3a, 0x40);
const TARGET: RGBColor = RGBColor(0xd0, 0x5a, 0x2b);

/// What is drawn.
#[derive(Debug, Clone, PartialEq)]
pub struct Plot {
    /// Above the curve.
    pub caption: &'static str,
    /// Beside the vertical axis, with the unit.
    pub measure: &'static str,
    /// The vertical axis.
    pub values: Range<f64>,
    /// Labels of the vertical axis, and digits behind their point.
    pub labels: (usize, usize),
    /// Seconds and value of each measurement, oldest first.
    pub points: Vec<(f64, f64)>,
    /// A level to compare with, and its name.
    pub level: (f64, &'static str),
    /// Spans of time to be marked: from, to, and a name for each.
    pub spans: Vec<(f64, f64, String)>,
}

impl Plot {
    /// Draws the plot into a file.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn write(&self, path: &Path) -> anyhow::Result<()> {
        let root = SVGBackend::new(path, SIZE).into_drawing_area();
        self.draw(&root).map_err(|error| anyhow!("cannot draw {}: {error}", path.display()))
    }

    fn draw(
        &self,
        root: &DrawingArea<SVGBackend<'_>, plotters::coord::Shift>,
    ) -> Result<(), Box<dyn std::error::Error>> {
        let end_s = self.points.last().map_or(1.0, |(at_s, _)| at_s * 1.03).max(1.0);
        let (bottom, top) = (self.values.start, self.values.end);
        root.fill(&WHITE)?;
        let mut chart = ChartBuilder::on(root)
            .caption(self.caption, ("sans-serif", 22).into_font().color(&INK))
            .margin(18)
            .x_label_area_size(44)
            .y_label_area_size(58)
            .build_cartesian_2d(0.0..end_s, bottom..top)?;
        let (labels, digits) = self.labels;
        chart
            .configure_mesh()
            .light_line_style(WHITE)
            .bold_line_style(FAINT)
            .axis_style(INK)
            .x_desc("seconds since the first model")
            .y_desc(self.measure)
            .y_labels(labels)
            .y_label_formatter(&|value| format!("{value:.digits$}"))
            .x_label_formatter(&|value| format!("{value:.0}"))
            .label_style(("sans-serif", 15).into_font().color(&INK))
            .draw()?;
        let below = |value: f64, percent: f64| value - percent * (top - bottom) / 100.0;
        for (number, (from_s, to_s, name)) in self.spans.iter().enumerate() {
            chart.draw_series([Rectangle::new([(*from_s, bottom), (*to_s, top)], TARGET.mix(0.15).filled())])?;
            let label = ("sans-serif", 15).into_font().color(&INK);
            let at = (to_s + end_s * 0.005, below(top, 2.0 + 6.0 * number as f64));
            chart.draw_series([Text::new(name.clone(), at, label)])?;
        }
        let points = || self.points.iter().copied();
        chart.draw_series(AreaSeries::new(points(), bottom, LINE.mix(0.10)))?;
        chart.draw_series(LineSeries::new(points(), LINE.stroke_width(3)))?;
        chart.draw_series(points().map(|point| Circle::new(point, 3, LINE.filled())))?;
        let (level, name) = self.level;
        chart.draw_series(LineSeries::new([(0.0, level), (end_s, level)], TARGET.stroke_width(1)))?;
        let label = ("sans-serif", 15).into_font().color(&TARGET);
        chart.draw_series([Text::new(name, (end_s * 0.005, below(level, 1.0)), label)])?;
        root.present()?;
        Ok(())
    }
}
