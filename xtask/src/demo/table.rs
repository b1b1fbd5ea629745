//! The table at the end, and the verdict on its proof.

use anyhow::{Result, ensure};

use super::Side;
use super::report::Report;

/// Rounds that differ by more than this share of their median get a mark.
const NOISY: f64 = 0.2;

/// One line of the upper half: what was measured, and the rates of every round, by side.
pub struct Row {
    pub name: String,
    pub rates: [Vec<f64>; 2],
}

/// One line of the lower half: a program, and its counters over all measured rounds.
pub struct Counted {
    pub name: String,
    pub report: Report,
}

/// Prints the rates side by side, then where the bytes went. `plain` is the heading of the first side, `unit` what the
/// rates count.
pub fn print(plain: &str, unit: &str, rows: &[Row], counted: &[Counted], rounds: u32) {
    println!("\n{}, median of {rounds} rounds, {unit}:\n", machine());
    println!(
        "{:<36}{plain:>12}{:>14}{:>9}",
        "",
        Side::Shared.label(),
        "ratio"
    );
    let mut marked = false;
    for Row { name, rates } in rows {
        let [tcp, shared] = [median(&rates[0]), median(&rates[1])];
        let noisy = spread(&rates[0]).max(spread(&rates[1])) > NOISY;
        marked |= noisy;
        let mark = if noisy { " ~" } else { "" };
        println!(
            "{name:<36}{:>12}{:>14}{:>8.2}x{mark}",
            grouped(tcp),
            grouped(shared),
            shared / tcp
        );
    }
    if marked {
        println!(
            "~ the rounds of one side differ by more than {:.0} %: run again on a quieter machine",
            NOISY * 100.0
        );
    }
    println!("\nWhere the bytes of the Sockets-GM runs went, by the counters of `--report`:\n");
    println!(
        "{:<36}{:>14}{:>14}{:>9}{:>15}",
        "", "shared memory", "plain TCP", "share", "connections"
    );
    for Counted { name, report } in counted {
        println!(
            "{name:<36}{:>14}{:>14}{:>7.1} %{:>15}",
            bytes(report.carried.both()),
            bytes(report.tcp.both()),
            report.share() * 100.0,
            format!(
                "{} of {}",
                report.connections.carried, report.connections.seen
            ),
        );
    }
    println!();
}

/// An error unless every program moved bytes through shared memory.
pub fn ensure_carried(counted: &[Counted]) -> Result<()> {
    for Counted { name, report } in counted {
        let reasons: Vec<_> = report
            .reasons
            .iter()
            .map(|(reason, count)| format!("{reason} {count}"))
            .collect();
        ensure!(
            report.carried.both() > 0,
            "shared memory carried nothing for {name}: {} connections seen, {} carried, {} bytes on plain TCP; reasons \
             given: {}. The table above compares TCP with TCP. `target/release/sgm doctor` looks for the cause",
            report.connections.seen,
            report.connections.carried,
            report.tcp.both(),
            if reasons.is_empty() {
                "none".to_owned()
            } else {
                reasons.join(", ")
            },
        );
    }
    Ok(())
}

/// The machine in one line: figures without it say little.
fn machine() -> String {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let info = read("/proc/cpuinfo");
    let model = info
        .lines()
        .find(|line| line.starts_with("model name"))
        .and_then(|line| line.split(": ").nth(1));
    let model = model.unwrap_or(std::env::consts::ARCH);
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    format!(
        "{model}, {cpus} CPUs, Linux {}",
        read("/proc/sys/kernel/osrelease").trim()
    )
}

/// The middle value, or the mean of the two middle ones.
fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    if sorted.len() % 2 == 1 {
        sorted[middle]
    } else {
        (sorted[middle - 1] + sorted[middle]) / 2.0
    }
}

/// Highest minus lowest, as a share of the median.
fn spread(values: &[f64]) -> f64 {
    let high = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let low = values.iter().copied().fold(f64::INFINITY, f64::min);
    (high - low) / median(values)
}

/// 1234567.8 to `1,234,568`.
fn grouped(value: f64) -> String {
    let digits = format!("{value:.0}");
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index) % 3 == 0 {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// Bytes in the unit that leaves a readable number.
fn bytes(count: u64) -> String {
    let mut value = count as f64;
    let mut unit = "B";
    for next in ["KiB", "MiB", "GiB", "TiB"] {
        if value < 1024.0 {
            break;
        }
        value /= 1024.0;
        unit = next;
    }
    if unit == "B" {
        format!("{count} B")
    } else {
        format!("{value:.1} {unit}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counted(name: &str, carried: u64) -> Counted {
        let mut report = Report::default();
        report.carried.rx_bytes = carried;
        report.tcp.tx_bytes = 5;
        report.reasons.insert("peer-not-ours".into(), 2);
        Counted {
            name: name.into(),
            report,
        }
    }

    #[test]
    fn nothing_carried_fails_with_the_program_and_the_reasons() {
        ensure_carried(&[counted("wrk", 1), counted("nginx", 9)]).unwrap();
        let error = ensure_carried(&[counted("wrk", 1), counted("nginx", 0)])
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("nginx") && error.contains("peer-not-ours 2"),
            "{error}"
        );
    }

    #[test]
    fn statistics() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), 2.5);
        assert_eq!(spread(&[9.0, 10.0, 12.0]), 0.3);
        assert_eq!(spread(&[5.0]), 0.0);
    }

    #[test]
    fn numbers_are_readable() {
        assert_eq!(grouped(999.4), "999");
        assert_eq!(grouped(1000.0), "1,000");
        assert_eq!(grouped(1_234_567.8), "1,234,568");
        assert_eq!(bytes(1023), "1023 B");
        assert_eq!(bytes(1536), "1.5 KiB");
        assert_eq!(bytes(3 << 30), "3.0 GiB");
    }
}
