//! The curves of the mixup lesson: Γ, the density of Beta(α, α), and the λ that are drawn from it.

use crate::escape::escaped;
use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Once;

use ::image::RgbImage;
use ::image::imageops::{self, FilterType};
use plotters::coord::Shift;
use plotters::coord::types::RangedCoordf64;
use plotters::prelude::*;

use super::special;
use crate::types::{ParseError, named};
use crate::view::text;

/// What can be drawn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Figure {
    /// Density of Beta(α, α) on [0, 1], a curve for each α.
    Beta,
    /// Γ over (0, 5], with the factorials that it joins.
    Gamma,
    /// Histogram of folded λ draws over the density of their law on [0.5, 1], a panel for each α.
    Lambda,
    /// How often each operation of a policy comes, with which arguments, a panel for each.
    Policy,
}
named!(
    Figure,
    "figure",
    "beta, gamma, lambda or policy",
    Beta = "beta",
    Gamma = "gamma",
    Lambda = "lambda",
    Policy = "policy"
);

/// What a figure is drawn of.
#[derive(Clone, Copy)]
pub struct Material<'a> {
    /// α of the curves or panels.
    pub alphas: &'a [f64],
    /// Folded λ draws for an α, which only [`Figure::Lambda`] asks for.
    pub lambdas: &'a dyn Fn(f64) -> Vec<f32>,
    /// What was drawn for a number of views, of [`Figure::Policy`].
    pub operations: &'a [DrawnOperation],
}

/// An operation as views have drawn it.
#[derive(Debug, Clone, PartialEq)]
pub struct DrawnOperation {
    /// Its name.
    pub name: &'static str,
    /// How many a view has, on average.
    pub per_view: f64,
    /// Its arguments; none where it takes none.
    pub arguments: Vec<f64>,
}

/// Why no figure was drawn.
#[derive(Debug, thiserror::Error)]
pub enum PlotError {
    /// The name of the output ends in neither format.
    #[error("cannot tell the format of `{}` (end its name in .svg or .png)", escaped(.0))]
    Extension(PathBuf),
    /// No α at all, or one that is not positive and finite.
    #[error("beta and lambda figures need at least one alpha, each above 0 and finite (give --alpha 0.4)")]
    Alpha,
    /// No operation was drawn.
    #[error(
        "nothing draws operations (give --policy trivial-augment-wide, or a --recipe that has a policy or color jitter)"
    )]
    NoOperations,
    /// A figure could not be laid out.
    #[error("failed to draw the figure: {0}")]
    Draw(String),
    /// The file could not be written.
    #[error("failed to write `{}`: {source} (choose a path that you may write with --out)", escaped(path))]
    Write {
        /// Where the figure was to be.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
}

/// Okabe & Ito's colours, which stay apart for colour-blind readers (jfly.uni-koeln.de/color).
const COLOURS: [RGBColor; 6] = [
    RGBColor(0, 114, 178),
    RGBColor(213, 94, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(230, 159, 0),
    RGBColor(86, 180, 233),
];
const INK: RGBColor = RGBColor(34, 36, 40);
const RULE: RGBColor = RGBColor(226, 226, 222);
const FAMILY: &str = "sans-serif";

/// Bitmap pixels for each unit of a drawing, for sharp text on dense screens.
const PNG_DENSITY: u32 = 2;
/// plotters does not smooth its lines: a bitmap is drawn this much larger and then reduced.
const OVERSAMPLING: u32 = 3;

const POINTS: usize = 600;
const BINS: usize = 25;

/// Draws `figure` into the file `out`, an SVG or a PNG by its extension.
///
/// # Errors
/// The extension is neither `svg` nor `png`; an α is not positive and finite, or none is given where the figure needs
/// one; there is no operation; the file cannot be written.
pub fn plot(figure: Figure, material: &Material<'_>, out: &Path) -> Result<(), PlotError> {
    let Material { alphas, operations, .. } = *material;
    let extension = out.extension().map(|extension| extension.to_ascii_lowercase());
    let svg = match extension.as_ref().and_then(|extension| extension.to_str()) {
        Some("svg") => true,
        Some("png") => false,
        _ => return Err(PlotError::Extension(out.to_owned())),
    };
    let valid = !alphas.is_empty() && alphas.iter().all(|alpha| alpha.is_finite() && *alpha > 0.0);
    match figure {
        Figure::Beta | Figure::Lambda if !valid => return Err(PlotError::Alpha),
        Figure::Policy if operations.is_empty() => return Err(PlotError::NoOperations),
        _ => {}
    }
    // plotters lays out text with this face in both formats; an SVG's reader then takes a sans serif of its own.
    static REGISTER: Once = Once::new();
    REGISTER.call_once(|| {
        // The bytes are those of `text`, whose tests read them as a font.
        let _ = plotters::style::register_font(FAMILY, FontStyle::Normal, text::TTF);
    });

    let panels = match figure {
        Figure::Lambda => alphas.len() as u32,
        Figure::Policy => operations.len() as u32,
        Figure::Beta | Figure::Gamma => 1,
    };
    let columns = panels.min(if figure == Figure::Policy { 4 } else { 3 });
    let (width, height) = match panels {
        1 => (860, 560),
        _ => (440 * columns, 60 + 360 * panels.div_ceil(columns)),
    };
    let sketch = Sketch { figure, material: *material, columns: columns as usize, scale: 1 };
    let bytes = if svg {
        let mut svg = String::new();
        sketch.draw(SVGBackend::with_string(&mut svg, (width, height)).into_drawing_area())?;
        svg.into_bytes()
    } else {
        let scale = PNG_DENSITY * OVERSAMPLING;
        let mut large = RgbImage::new(width * scale, height * scale);
        let size = large.dimensions();
        Sketch { scale, ..sketch }.draw(BitMapBackend::with_buffer(&mut large, size).into_drawing_area())?;
        let small = imageops::resize(&large, width * PNG_DENSITY, height * PNG_DENSITY, FilterType::Triangle);
        let mut png = std::io::Cursor::new(Vec::new());
        small.write_to(&mut png, ::image::ImageFormat::Png).map_err(|error| PlotError::Draw(error.to_string()))?;
        png.into_inner()
    };
    std::fs::write(out, bytes).map_err(|source| PlotError::Write { path: out.to_owned(), source })
}

type Area<DB> = DrawingArea<DB, Shift>;
type Chart<'a, DB> = ChartContext<'a, DB, Cartesian2d<RangedCoordf64, RangedCoordf64>>;
type Drawn<DB> = Result<(), DrawingAreaErrorKind<<DB as DrawingBackend>::ErrorType>>;

/// A figure before it has a format; `scale` is the size of one unit in the backend's pixels.
#[derive(Clone, Copy)]
struct Sketch<'a> {
    figure: Figure,
    material: Material<'a>,
    columns: usize,
    scale: u32,
}

impl Sketch<'_> {
    fn draw<DB: DrawingBackend>(&self, area: Area<DB>) -> Result<(), PlotError> {
        self.figure(&area).and_then(|()| area.present()).map_err(|error| PlotError::Draw(error.to_string()))
    }

    fn figure<DB: DrawingBackend>(&self, area: &Area<DB>) -> Drawn<DB> {
        area.fill(&WHITE)?;
        let title = match self.figure {
            Figure::Gamma => "The gamma function",
            Figure::Beta => "Density of Beta(α, α)",
            Figure::Lambda => "λ = max(r, 1 − r),  r drawn from Beta(α, α)",
            Figure::Policy => "Operations of a view, and their arguments",
        };
        let margin = self.px(14);
        let area = area.margin(margin, 0, margin, margin).titled(title, self.text(22))?;
        match self.figure {
            Figure::Gamma => self.gamma(&area),
            Figure::Beta => self.beta(&area),
            Figure::Lambda => {
                let alphas = self.material.alphas;
                let panels = area.split_evenly((alphas.len().div_ceil(self.columns), self.columns));
                panels.iter().zip(alphas).try_for_each(|(panel, &alpha)| self.lambda(panel, alpha))
            }
            Figure::Policy => {
                let operations = self.material.operations;
                let panels = area.split_evenly((operations.len().div_ceil(self.columns), self.columns));
                panels.iter().zip(operations).try_for_each(|(panel, operation)| self.operation(panel, operation))
            }
        }
    }

    fn operation<DB: DrawingBackend>(&self, area: &Area<DB>, operation: &DrawnOperation) -> Drawn<DB> {
        let DrawnOperation { name, per_view, ref arguments } = *operation;
        let caption = format!("{name}, {per_view:.3} a view");
        if arguments.is_empty() {
            return area.titled(&caption, self.text(18)).map(drop);
        }
        let (low, high) = arguments.iter().fold((f64::MAX, f64::MIN), |(low, high), &a| (low.min(a), high.max(a)));
        let width = ((high - low) / BINS as f64).max(1e-9);
        let mut shares = [0.0; BINS];
        for argument in arguments {
            shares[(((argument - low) / width) as usize).min(BINS - 1)] += 1.0 / arguments.len() as f64;
        }
        let (from, to) = if high > low { (low, high) } else { (low - 1.0, low + 1.0) };
        let top = shares.iter().copied().fold(0.0, f64::max) * 1.1;
        let mut chart = self.axes(area, Some(&caption), (from, to), top, ("argument", "share"))?;
        let bar = |at: usize| {
            let start = low + width * at as f64;
            let end = if high > low { start + width } else { low + 0.05 };
            Rectangle::new([(start, 0.0), (end, shares[at])], COLOURS[0].filled())
        };
        chart.draw_series((0..BINS).filter(|&at| shares[at] > 0.0).map(bar))?;
        Ok(())
    }

    fn gamma<DB: DrawingBackend>(&self, area: &Area<DB>) -> Drawn<DB> {
        let mut chart = self.axes(area, None, (0.0, 5.1), 25.0, ("x", "Γ(x)"))?;
        let curve = curve((0.0, 5.0), 25.0, special::gamma);
        self.line(&mut chart, curve, COLOURS[0], "Γ(x)".to_owned())?;
        let (radius, colour) = (self.px(5), COLOURS[1].filled());
        let dots = (1..=5u8).map(|n| Circle::new((f64::from(n), special::gamma(f64::from(n))), radius, colour));
        let half = self.px(13);
        chart.draw_series(dots)?.label("(x − 1)!").legend(move |(x, y)| Circle::new((x + half, y), radius, colour));
        self.legend(&mut chart, SeriesLabelPosition::UpperMiddle)
    }

    fn beta<DB: DrawingBackend>(&self, area: &Area<DB>) -> Drawn<DB> {
        // The humps fit beneath the legend; what rises to infinity at the ends (α < 1) is cut.
        let humps = self.material.alphas.iter().filter(|alpha| **alpha >= 1.0);
        let top = humps.map(|&alpha| 1.5 * special::beta_density(alpha, 0.5)).fold(3.5, f64::max);
        let mut chart = self.axes(area, None, (0.0, 1.0), top, ("x", "density"))?;
        for (&alpha, colour) in self.material.alphas.iter().zip(COLOURS.into_iter().cycle()) {
            let curve = curve((0.0, 1.0), top, |x| special::beta_density(alpha, x));
            self.line(&mut chart, curve, colour, format!("α = {alpha}"))?;
        }
        self.legend(&mut chart, SeriesLabelPosition::UpperMiddle)
    }

    fn lambda<DB: DrawingBackend>(&self, area: &Area<DB>, alpha: f64) -> Drawn<DB> {
        let draws = (self.material.lambdas)(alpha);
        let bars = histogram(&draws);
        let top = bars.iter().copied().fold(2.2, f64::max) * 1.35;
        let mut chart = self.axes(area, Some(&format!("α = {alpha}")), (0.5, 1.0), top, ("λ", "density"))?;
        let (fill, edge) = (COLOURS[5].mix(0.55).filled(), WHITE.stroke_width(self.scale));
        let half = self.px(6);
        let corners = |i: usize| [(bin_start(i), 0.0), (bin_start(i + 1), bars[i])];
        chart
            .draw_series((0..BINS).map(|i| Rectangle::new(corners(i), fill)))?
            .label(format!("{} draws", draws.len()))
            .legend(move |(x, y)| Rectangle::new([(x, y - half), (x + 4 * half, y + half)], fill));
        chart.draw_series((0..BINS).map(|i| Rectangle::new(corners(i), edge)))?;
        let curve = curve((0.5, 1.0), top, |lambda| special::folded_density(alpha, lambda));
        self.line(&mut chart, curve, COLOURS[1], "density".to_owned())?;
        self.legend(
            &mut chart,
            if alpha > 1.0 { SeriesLabelPosition::UpperRight } else { SeriesLabelPosition::UpperLeft },
        )
    }

    fn px(&self, units: u32) -> i32 {
        (units * self.scale) as i32
    }

    fn text(&self, units: u32) -> TextStyle<'static> {
        (FAMILY, self.px(units)).into_font().color(&INK)
    }

    fn axes<'a, DB: DrawingBackend>(
        &self,
        area: &'a Area<DB>,
        caption: Option<&str>,
        (from, to): (f64, f64),
        top: f64,
        (x, y): (&str, &str),
    ) -> Result<Chart<'a, DB>, DrawingAreaErrorKind<DB::ErrorType>> {
        let mut builder = ChartBuilder::on(area);
        builder.margin(self.px(10)).x_label_area_size(self.px(46)).y_label_area_size(self.px(58));
        if let Some(caption) = caption {
            builder.caption(caption, self.text(18));
        }
        let mut chart = builder.build_cartesian_2d(from..to, 0.0..top)?;
        chart
            .configure_mesh()
            .x_labels(6)
            .y_labels(6)
            .max_light_lines(0)
            .bold_line_style(RULE.stroke_width(self.scale))
            .axis_style(INK.stroke_width(self.scale))
            .set_all_tick_mark_size(self.px(4))
            .label_style(self.text(14))
            .axis_desc_style(self.text(16))
            .x_desc(x)
            .y_desc(y)
            .draw()?;
        Ok(chart)
    }

    fn line<DB: DrawingBackend>(
        &self,
        chart: &mut Chart<'_, DB>,
        points: Vec<(f64, f64)>,
        colour: RGBColor,
        label: String,
    ) -> Drawn<DB> {
        let (style, length) = (colour.stroke_width(self.scale * 5 / 2), self.px(26));
        let series = chart.draw_series(std::iter::once(PathElement::new(points, style)))?;
        series.label(label).legend(move |(x, y)| PathElement::new([(x, y), (x + length, y)], style));
        Ok(())
    }

    fn legend<'a, DB: DrawingBackend + 'a>(&self, chart: &mut Chart<'a, DB>, place: SeriesLabelPosition) -> Drawn<DB> {
        chart
            .configure_series_labels()
            .position(place)
            .margin(self.px(12))
            .legend_area_size(self.px(34))
            .label_font(self.text(15))
            .background_style(WHITE.mix(0.9))
            .border_style(RULE.stroke_width(self.scale))
            .draw()
    }
}

/// `function` over the open interval as a polyline that ends where it leaves [0, `top`].
fn curve((from, to): (f64, f64), top: f64, function: impl Fn(f64) -> f64) -> Vec<(f64, f64)> {
    // Cosine spacing: dense at the ends, where the curves are steep.
    let angle = |i: usize| std::f64::consts::PI * (i as f64 + 0.5) / POINTS as f64;
    let points: Vec<_> =
        (0..POINTS).map(|i| from + (to - from) * (1.0 - angle(i).cos()) / 2.0).map(|x| (x, function(x))).collect();
    let mut inside = Vec::with_capacity(POINTS);
    for (i, &(x, y)) in points.iter().enumerate() {
        if let Some(&(x0, y0)) = i.checked_sub(1).and_then(|i| points.get(i))
            && (y0 > top) != (y > top)
        {
            inside.push((x0 + (x - x0) * (top - y0) / (y - y0), top));
        }
        if y <= top {
            inside.push((x, y));
        }
    }
    inside
}

fn bin_start(bin: usize) -> f64 {
    0.5 + 0.5 * bin as f64 / BINS as f64
}

/// Heights of equal bins over [0.5, 1] such that the area is 1; λ = 1 belongs to the last bin.
fn histogram(draws: &[f32]) -> [f64; BINS] {
    let mut counts = [0.0; BINS];
    for &lambda in draws {
        let bin = (f64::from(lambda) - 0.5) * 2.0 * BINS as f64;
        counts[(bin as usize).min(BINS - 1)] += 1.0;
    }
    counts.map(|count| count * 2.0 * BINS as f64 / draws.len().max(1) as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn material<'a>(alphas: &'a [f64], operations: &'a [DrawnOperation]) -> Material<'a> {
        Material { alphas, lambdas: &even, operations }
    }

    fn even(_alpha: f64) -> Vec<f32> {
        (0..=1000u16).map(|i| 0.5 + f32::from(i) / 2000.0).collect()
    }

    #[test]
    fn every_figure_is_drawn_in_both_formats() {
        let folder = tempfile::tempdir().unwrap();
        let operations = [
            DrawnOperation { name: "rotate", per_view: 0.25, arguments: vec![-9.0, 3.0, 9.0] },
            DrawnOperation { name: "invert", per_view: 0.5, arguments: vec![] },
            DrawnOperation { name: "solarize", per_view: 0.1, arguments: vec![128.0] },
        ];
        for &figure in Figure::ALL {
            let svg = folder.path().join(format!("{figure}.svg"));
            plot(figure, &material(&[0.1, 0.4, 1.0, 8.0], &operations), &svg).unwrap();
            let svg = std::fs::read_to_string(svg).unwrap();
            assert!(svg.starts_with("<svg") && svg.contains("sans-serif"), "{figure}");
            assert_eq!(svg.contains("α = 0.4"), matches!(figure, Figure::Beta | Figure::Lambda), "{figure}");
            assert_eq!(svg.contains("rotate, 0.250 a view"), figure == Figure::Policy, "{figure}");

            let png = folder.path().join(format!("{figure}.PNG"));
            plot(figure, &material(&[0.4], &operations[..1]), &png).unwrap();
            let png = ::image::open(png).unwrap().into_rgb8();
            assert_eq!(png.dimensions(), (1720, 1120));
            let has = |colour: RGBColor| png.pixels().any(|pixel| pixel.0 == [colour.0, colour.1, colour.2]);
            assert!(has(WHITE) && has(if figure == Figure::Lambda { COLOURS[1] } else { COLOURS[0] }), "{figure}");
        }
    }

    #[test]
    fn another_extension_or_alpha_is_refused_naming_what_would_do() {
        let refusal =
            |alphas: &[f64], out: &str| plot(Figure::Beta, &material(alphas, &[]), Path::new(out)).unwrap_err();
        let none = plot(Figure::Policy, &material(&[], &[]), Path::new("a.svg")).unwrap_err().to_string();
        assert!(none.contains("--policy"), "{none}");
        for out in ["a.pdf", "a", "svg"] {
            let text = refusal(&[0.4], out).to_string();
            assert!(text.contains(out) && text.contains(".svg or .png"), "{text}");
        }
        for alphas in [&[][..], &[0.0], &[0.4, -1.0], &[f64::NAN], &[f64::INFINITY]] {
            assert!(matches!(refusal(alphas, "a.svg"), PlotError::Alpha), "{alphas:?}");
        }
        assert!(matches!(refusal(&[0.4], "/nowhere/a.svg"), PlotError::Write { .. }));
    }

    #[test]
    fn curve_stops_where_it_leaves_the_frame() {
        let points = curve((0.0, 1.0), 3.0, |x| special::beta_density(0.4, x));
        assert!(points.iter().all(|(_, y)| *y <= 3.0));
        assert_eq!((points[0].1, points[points.len() - 1].1), (3.0, 3.0));
    }

    #[test]
    fn histogram_has_area_one_and_counts_both_ends() {
        let bars = histogram(&[0.5, 0.75, 1.0, 1.0]);
        assert!((bars.iter().sum::<f64>() / (2.0 * BINS as f64) - 1.0).abs() < 1e-12);
        assert_eq!((bars[0], bars[BINS - 1]), (12.5, 25.0));
    }
}
