//! Figures: what is measured, in which unit, which way is better, and what the project promises for it.

use serde::Serialize;

use super::stats::Summary;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Unit {
    Nanoseconds,
    PerSecond,
    BytesPerSecond,
    Bytes,
    Percent,
    /// So many of something.
    Count,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Better {
    Lower,
    Higher,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Metric {
    pub name: &'static str,
    pub unit: Unit,
    pub better: Better,
}

const fn metric(name: &'static str, unit: Unit, better: Better) -> Metric {
    Metric { name, unit, better }
}

pub const MEAN: Metric = metric("mean", Unit::Nanoseconds, Better::Lower);
pub const P50: Metric = metric("p50", Unit::Nanoseconds, Better::Lower);
pub const P99: Metric = metric("p99", Unit::Nanoseconds, Better::Lower);
pub const CPU_PER_MESSAGE: Metric = metric("cpu/message", Unit::Nanoseconds, Better::Lower);
pub const CPU_PERCENT: Metric = metric("cpu", Unit::Percent, Better::Lower);
pub const CLIENT_CPU_PERCENT: Metric = metric("cpu, client", Unit::Percent, Better::Lower);
pub const WINESERVER_CPU_PERCENT: Metric = metric("cpu, wineserver", Unit::Percent, Better::Lower);
pub const MESSAGES: Metric = metric("messages/s", Unit::PerSecond, Better::Higher);
pub const BYTES: Metric = metric("bytes/s", Unit::BytesPerSecond, Better::Higher);
pub const CONNECTIONS: Metric = metric("connections/s", Unit::PerSecond, Better::Higher);
/// What woke a sleeper: bytes on the stream and port bells, of both ends, for each message that was carried.
pub const BELLS: Metric = metric("bells/message", Unit::Count, Better::Lower);
pub const MEMORY: Metric = metric("memory/connection", Unit::Bytes, Better::Lower);

/// A promise about one metric of one row.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Target {
    /// At least so many times better than plain TCP.
    Gain(f64),
    /// At most this share of plain TCP's.
    OfPlain(f64),
    /// At most so many times the raw cache-line round trip.
    TimesRaw(f64),
    /// The carried value stays under this.
    Below(f64),
    /// The carried value exceeds the plain one by less than this.
    ExtraBelow(f64),
}

impl Target {
    fn text(self, unit: Unit) -> String {
        match self {
            Self::Gain(n) => format!(">= {n}x"),
            Self::OfPlain(n) => format!("<= {n} of plain"),
            Self::TimesRaw(n) => format!("<= {n} raw"),
            Self::Below(n) => format!("< {}", unit.show(n)),
            Self::ExtraBelow(n) => format!("< +{}", unit.show(n)),
        }
    }

    /// None where one of the values that it compares is missing.
    fn met(self, figure: &Figure) -> Option<bool> {
        let plain = || figure.plain.as_ref().map(|s| s.median);
        let carried = figure.carried.as_ref().map(|s| s.median)?;
        Some(match self {
            Self::Gain(n) => figure.gain? >= n,
            Self::OfPlain(n) => figure.ratio? <= n,
            Self::TimesRaw(n) => figure.times_raw? <= n,
            Self::Below(n) => carried < n,
            Self::ExtraBelow(n) => carried - plain()? < n,
        })
    }
}

#[derive(Clone, Debug, Serialize)]
pub struct Verdict {
    pub target: String,
    pub met: Option<bool>,
}

/// One metric of one row, both sides.
#[derive(Clone, Debug, Serialize)]
pub struct Figure {
    #[serde(flatten)]
    pub metric: Metric,
    pub plain: Option<Summary>,
    pub carried: Option<Summary>,
    /// carried / plain, of the medians.
    pub ratio: Option<f64>,
    /// How many times better carried is than plain: the ratio, or its inverse where lower is better.
    pub gain: Option<f64>,
    /// Carried median / raw cache-line round trip, for latencies.
    pub times_raw: Option<f64>,
    pub targets: Vec<Verdict>,
}

impl Figure {
    pub fn new(
        metric: Metric,
        plain: Vec<f64>,
        carried: Vec<f64>,
        raw_ns: Option<f64>,
        targets: &[Target],
    ) -> Self {
        let (plain, carried) = (Summary::of(plain), Summary::of(carried));
        let medians = plain
            .as_ref()
            .zip(carried.as_ref())
            .map(|(p, c)| (p.median, c.median));
        // A figure of nothing (no CPU used, no memory grown) has no ratio.
        let ratio = medians
            .filter(|&(p, c)| p > 0.0 && c > 0.0)
            .map(|(p, c)| c / p);
        let gain = match metric.better {
            Better::Lower => ratio.map(|r| 1.0 / r),
            Better::Higher => ratio,
        };
        let is_round_trip = matches!(metric.name, "mean" | "p50" | "p99");
        let times_raw = raw_ns
            .filter(|_| is_round_trip)
            .zip(carried.as_ref())
            .map(|(raw, c)| c.median / raw);
        let mut figure = Self {
            metric,
            plain,
            carried,
            ratio,
            gain,
            times_raw,
            targets: Vec::new(),
        };
        figure.targets = targets
            .iter()
            .map(|target| Verdict {
                target: target.text(metric.unit),
                met: target.met(&figure),
            })
            .collect();
        figure
    }

    /// A sentence for each side whose rounds disagree so much that the median says little.
    pub fn warnings(&self, row: &str) -> Vec<String> {
        // A handful of ticks of CPU time, or of pages, always looks wide.
        let steady = !matches!(self.metric.unit, Unit::Percent | Unit::Bytes);
        [("plain", &self.plain), ("carried", &self.carried)]
            .into_iter()
            .filter_map(|(side, summary)| Some((side, summary.as_ref()?)))
            .filter(|(_, summary)| steady && summary.spread() > WIDE)
            .map(|(side, summary)| {
                let (low, high) = (
                    self.metric.unit.show(summary.min),
                    self.metric.unit.show(summary.max),
                );
                format!(
                    "{row}: {side} {} varies from round to round, {low} to {high}",
                    self.metric.name
                )
            })
            .collect()
    }
}

/// A spread (max - min) / median above this is worth a warning.
const WIDE: f64 = 0.3;

impl Unit {
    /// Scale and suffix that suit `value`.
    fn scale(self, value: f64) -> (f64, &'static str) {
        let steps: &[(f64, &'static str)] = match self {
            Self::Nanoseconds => &[(1e9, "s"), (1e6, "ms"), (1e3, "us"), (1.0, "ns")],
            Self::PerSecond => &[(1e6, "M/s"), (1e3, "k/s"), (1.0, "/s")],
            Self::BytesPerSecond => &[(1e9, "GB/s"), (1e6, "MB/s"), (1e3, "kB/s"), (1.0, "B/s")],
            Self::Bytes => &[(1048576.0, "MiB"), (1024.0, "KiB"), (1.0, "B")],
            Self::Percent => &[(1.0, "%")],
            Self::Count => &[(1.0, "")],
        };
        let fits = |step: &&(f64, &'static str)| value.abs() >= step.0;
        *steps.iter().find(fits).unwrap_or(&steps[steps.len() - 1])
    }

    pub fn show(self, value: f64) -> String {
        let (scale, suffix) = self.scale(value);
        format!("{} {suffix}", digits(value / scale))
            .trim_end()
            .to_owned()
    }

    /// `min..max` in the unit that suits `median`, without the suffix.
    pub fn show_range(self, summary: &Summary) -> String {
        let (scale, _) = self.scale(summary.median);
        format!(
            "{}..{}",
            digits(summary.min / scale),
            digits(summary.max / scale)
        )
    }
}

/// Three significant digits, without an exponent; whole numbers below 1000 without a fraction.
pub fn digits(value: f64) -> String {
    let size = value.abs();
    if size >= 100.0 || value.fract() == 0.0 {
        return format!("{value:.0}");
    }
    let places = if size >= 10.0 {
        1
    } else if size >= 1.0 {
        2
    } else {
        3
    };
    format!("{value:.places$}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lower_carried_latency_is_a_gain() {
        let targets = [Target::Gain(30.0), Target::TimesRaw(4.0)];
        let figure = Figure::new(MEAN, vec![12_000.0], vec![300.0], Some(100.0), &targets);
        assert_eq!(
            (figure.ratio, figure.gain, figure.times_raw),
            (Some(0.025), Some(40.0), Some(3.0))
        );
        assert!(
            figure.targets.iter().all(|t| t.met == Some(true)),
            "{:?}",
            figure.targets
        );
        let slow = Figure::new(MEAN, vec![12_000.0], vec![500.0], Some(100.0), &targets);
        assert!(
            slow.targets.iter().all(|t| t.met == Some(false)),
            "{:?}",
            slow.targets
        );
    }

    #[test]
    fn a_missing_side_gives_no_verdict() {
        let targets = [
            Target::Gain(1.0),
            Target::TimesRaw(4.0),
            Target::Below(1.0),
            Target::ExtraBelow(1.0),
        ];
        let figure = Figure::new(MEAN, vec![12_000.0], vec![], Some(100.0), &targets);
        assert_eq!(figure.ratio, None);
        assert!(
            figure.targets.iter().all(|t| t.met.is_none()),
            "{:?}",
            figure.targets
        );
    }

    #[test]
    fn limits_are_absolute_or_beside_plain() {
        let idle = Figure::new(
            CPU_PERCENT,
            vec![0.0],
            vec![0.1],
            None,
            &[Target::Below(0.2)],
        );
        assert_eq!((idle.ratio, idle.targets[0].met), (None, Some(true)));
        let memory = |carried: f64| {
            Figure::new(
                MEMORY,
                vec![500.0],
                vec![carried],
                None,
                &[Target::ExtraBelow(16384.0)],
            )
        };
        assert_eq!(memory(16_000.0).targets[0].met, Some(true));
        assert_eq!(memory(17_000.0).targets[0].met, Some(false));
    }

    #[test]
    fn a_wide_spread_is_reported() {
        let figure = Figure::new(
            MEAN,
            vec![100.0, 100.0, 140.0],
            vec![10.0, 10.1, 10.2],
            None,
            &[],
        );
        let warnings = figure.warnings("rtt-64");
        assert_eq!(warnings.len(), 1, "{warnings:?}");
        assert!(
            warnings[0].contains("plain mean varies from round to round, 100 ns to 140 ns"),
            "{warnings:?}"
        );
    }

    #[test]
    fn numbers_have_three_digits_and_a_unit() {
        assert_eq!(Unit::Nanoseconds.show(13_240.0), "13.2 us");
        assert_eq!(Unit::Nanoseconds.show(97.25), "97.2 ns");
        assert_eq!(Unit::BytesPerSecond.show(5.25e9), "5.25 GB/s");
        assert_eq!(Unit::Percent.show(0.0), "0 %");
        assert_eq!(Unit::Percent.show(0.0413), "0.041 %");
        let summary = Summary::of(vec![12_900.0, 13_000.0, 14_100.0]).unwrap();
        assert_eq!(Unit::Nanoseconds.show_range(&summary), "12.9..14.1");
    }
}
