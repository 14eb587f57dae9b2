//! Accuracy over time, as SVG.

use std::path::Path;

use anabranch_common::status::StatusReport;
use anyhow::anyhow;
use plotters::prelude::*;

const SIZE: (u32, u32) = (960, 480);
const LINE: RGBColor = RGBColor(0x1f, 0x6f, 0xb4);
const FAINT: RGBColor = RGBColor(0xdd, 0xe3, 0xe8);
const INK: RGBColor = RGBColor(0x33, 0x3a, 0x40);
const TARGET: RGBColor = RGBColor(0xd0, 0x5a, 0x2b);

/// Draws every measurement of the run, with the target as a line.
pub(crate) fn accuracy(report: &StatusReport, path: &Path) -> anyhow::Result<()> {
    let points: Vec<(f64, f64)> =
        report.aggregates.iter().map(|timed| (timed.at_s, 100.0 * timed.aggregate.accuracy)).collect();
    let end_s = points.last().map_or(1.0, |(at_s, _)| at_s * 1.03).max(1.0);
    let root = SVGBackend::new(path, SIZE).into_drawing_area();
    draw(&root, &points, end_s).map_err(|error| anyhow!("cannot draw {}: {error}", path.display()))
}

fn draw(
    root: &DrawingArea<SVGBackend<'_>, plotters::coord::Shift>,
    points: &[(f64, f64)],
    end_s: f64,
) -> Result<(), Box<dyn std::error::Error>> {
    root.fill(&WHITE)?;
    let mut chart = ChartBuilder::on(root)
        .caption(
            "Four agents, one ten times slower, one killed: test accuracy",
            ("sans-serif", 22).into_font().color(&INK),
        )
        .margin(18)
        .x_label_area_size(44)
        .y_label_area_size(58)
        .build_cartesian_2d(0.0..end_s, 0.0..100.0)?;
    chart
        .configure_mesh()
        .light_line_style(WHITE)
        .bold_line_style(FAINT)
        .axis_style(INK)
        .x_desc("seconds since the first model")
        .y_desc("accuracy on unseen digits, %")
        .y_labels(11)
        .y_label_formatter(&|value| format!("{value:.0}"))
        .x_label_formatter(&|value| format!("{value:.0}"))
        .label_style(("sans-serif", 15).into_font().color(&INK))
        .draw()?;
    chart.draw_series(AreaSeries::new(points.iter().copied(), 0.0, LINE.mix(0.10)))?;
    chart.draw_series(LineSeries::new(points.iter().copied(), LINE.stroke_width(3)))?;
    chart.draw_series(points.iter().map(|point| Circle::new(*point, 3, LINE.filled())))?;
    chart.draw_series(LineSeries::new([(0.0, 95.0), (end_s, 95.0)], TARGET.stroke_width(1)))?;
    let label = ("sans-serif", 15).into_font().color(&TARGET);
    chart.draw_series([Text::new("95 %", (end_s * 0.005, 94.0), label)])?;
    root.present()?;
    Ok(())
}
