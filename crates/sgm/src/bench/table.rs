//! The table that people read, one row at a time as the rows are finished.

use super::figure::{BELLS, CPU_PER_MESSAGE, Figure, Metric, P50, P99, Unit, digits};
use super::machine::Machine;
use super::measure::RowResult;
use super::rows::GROUPS;

/// Prints rows under the headings of their groups.
#[derive(Default)]
pub struct Table {
    group: &'static str,
}

/// Shown together on a line of their own, below the mean, where nothing is promised for them.
const DETAILS: [Metric; 4] = [P50, P99, CPU_PER_MESSAGE, BELLS];

fn is_detail(figure: &Figure) -> bool {
    DETAILS.contains(&figure.metric) && figure.targets.is_empty()
}

pub fn header(machine: &Machine, rounds: usize) -> String {
    let Machine {
        cpu_model,
        cpus,
        kernel,
        server_cpu,
        client_cpu,
        ..
    } = machine;
    format!(
        "sgm bench: {rounds} rounds, plain TCP and carried in turn; median (min..max)\n\
         {cpu_model}, {cpus} CPUs, Linux {kernel}; server on CPU {server_cpu}, client on CPU {client_cpu}\n\n{}",
        line(
            "",
            "plain TCP",
            "carried",
            "carried",
            "gain",
            "times",
            "target"
        ) + "\n"
            + &line("", "", "", "/ plain", "", "raw", "")
    )
}

fn line(
    label: &str,
    plain: &str,
    carried: &str,
    ratio: &str,
    gain: &str,
    raw: &str,
    targets: &str,
) -> String {
    format!("{label:<56} {plain:<25} {carried:<25} {ratio:>8} {gain:>8} {raw:>6}  {targets}")
        .trim_end()
        .to_owned()
}

impl Table {
    /// The lines of a finished row, with the heading of its group if it is the first of it.
    pub fn row(&mut self, row: &RowResult) -> String {
        let mut lines = Vec::new();
        if self.group != row.group {
            self.group = row.group;
            let heading = GROUPS
                .iter()
                .find(|(group, _)| *group == row.group)
                .map_or(row.group, |(_, title)| *title);
            lines.push(heading.to_owned());
        }
        // Several programs' figures in one row: each has a name of its own.
        let first = row
            .figures
            .first()
            .filter(|_| row.group == "apps")
            .map_or(row.title.as_str(), |f| f.metric.name);
        let label = format!("  {:<13} {first}", row.name);
        // Messages/s and bytes/s are the same thing twice: the second is left to the JSON.
        let most = if row.group == "stream" { 1 } else { usize::MAX };
        let main: Vec<&Figure> = row
            .figures
            .iter()
            .filter(|f| !is_detail(f))
            .take(most)
            .collect();
        for (i, figure) in main.iter().enumerate() {
            let own = format!("{:<16}{}", "", figure.metric.name);
            lines.push(figure_line(if i == 0 { &label } else { &own }, figure));
            if i == 0 {
                lines.extend(details(&row.figures));
            }
        }
        if main.is_empty() {
            lines.push(label);
        }
        let complaint = row
            .carriage
            .as_ref()
            .filter(|c| !c.ok)
            .map(|c| c.complaint());
        let skipped = row.skipped.as_ref().map(|why| format!("skipped: {why}"));
        let error = row.error.as_ref().map(|why| format!("FAILED: {why}"));
        lines.extend(
            [skipped, error, complaint]
                .into_iter()
                .flatten()
                .map(|text| format!("{:<16}{text}", "")),
        );
        lines.join("\n")
    }
}

fn figure_line(label: &str, figure: &Figure) -> String {
    let unit = figure.metric.unit;
    let cell = |summary: &Option<super::stats::Summary>| {
        summary.as_ref().map_or_else(
            || "-".to_owned(),
            |s| match s.rounds.len() {
                1 => unit.show(s.median),
                _ => format!("{} ({})", unit.show(s.median), unit.show_range(s)),
            },
        )
    };
    let targets: Vec<String> = figure
        .targets
        .iter()
        .map(|verdict| {
            let mark = verdict
                .met
                .map_or("?", |met| if met { "ok" } else { "MISS" });
            format!("{mark} {}", verdict.target)
        })
        .collect();
    line(
        label,
        &cell(&figure.plain),
        &cell(&figure.carried),
        &figure.ratio.map(digits).unwrap_or_default(),
        &figure
            .gain
            .map(|gain| format!("{}x", digits(gain)))
            .unwrap_or_default(),
        &figure.times_raw.map(digits).unwrap_or_default(),
        &targets.join(", "),
    )
}

/// `p50 | p99 | cpu/message | bells/message`, as far as the row has them.
fn details(figures: &[Figure]) -> Option<String> {
    let figures: Vec<&Figure> = figures.iter().filter(|f| is_detail(f)).collect();
    let names: Vec<&str> = figures.iter().map(|f| f.metric.name).collect();
    let side = |carried: bool| {
        let summary = |f: &&Figure| {
            if carried {
                f.carried.clone()
            } else {
                f.plain.clone()
            }
        };
        let values = |times: bool| -> Vec<String> {
            figures
                .iter()
                .filter(|f| (f.metric.unit == Unit::Nanoseconds) == times)
                .filter_map(|f| {
                    Some(digits(
                        summary(f)?.median / if times { 1000.0 } else { 1.0 },
                    ))
                })
                .collect()
        };
        let times = values(true).join(" | ");
        let times = (!times.is_empty()).then(|| format!("{times} us"));
        let parts: Vec<String> = times.into_iter().chain(values(false)).collect();
        match parts.is_empty() {
            true => "-".to_owned(),
            false => parts.join(" | "),
        }
    };
    if figures.is_empty() {
        return None;
    }
    let label = format!("{:<16}{}", "", names.join(" | "));
    Some(line(&label, &side(false), &side(true), "", "", "", ""))
}

#[cfg(test)]
mod tests {
    use super::super::figure::{MEAN, Target};
    use super::*;

    fn row(error: Option<&str>) -> RowResult {
        let targets = [Target::Gain(30.0), Target::TimesRaw(4.0)];
        RowResult {
            name: "rtt-64".into(),
            group: "rtt",
            title: "64 B".into(),
            figures: vec![
                Figure::new(
                    MEAN,
                    vec![12_000.0, 13_000.0, 14_000.0],
                    vec![300.0, 310.0, 320.0],
                    Some(70.0),
                    &targets,
                ),
                Figure::new(P50, vec![12_000.0], vec![300.0], Some(70.0), &[]),
                Figure::new(P99, vec![20_000.0], vec![900.0], Some(70.0), &[]),
            ],
            carriage: None,
            error: error.map(str::to_owned),
            skipped: None,
        }
    }

    #[test]
    fn a_row_shows_both_sides_and_the_verdicts() {
        let mut table = Table::default();
        let text = table.row(&row(None));
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 3, "{text}");
        assert!(lines[0].starts_with("round trip"), "{text}");
        for part in [
            "rtt-64",
            "13 us (12..14)",
            "310 ns (300..320)",
            "0.024",
            "41.9x",
            "ok >= 30x, MISS <= 4 raw",
        ] {
            assert!(lines[1].contains(part), "{part} is missing in {}", lines[1]);
        }
        assert!(
            lines[2].contains("12 | 20 us") && lines[2].contains("0.300 | 0.900 us"),
            "{text}"
        );
        assert!(
            !table.row(&row(None)).contains("round trip"),
            "one heading per group"
        );
    }

    #[test]
    fn a_failure_is_in_the_table() {
        assert!(
            Table::default()
                .row(&row(Some("the client: wrong bytes")))
                .contains("FAILED: the client: wrong bytes")
        );
    }
}
