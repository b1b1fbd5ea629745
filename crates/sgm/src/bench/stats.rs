//! Medians over rounds, and the histogram of individually timed round trips.

use serde::Serialize;

/// The values of all rounds of one figure on one side.
#[derive(Clone, Debug, Serialize)]
pub struct Summary {
    pub median: f64,
    pub min: f64,
    pub max: f64,
    pub rounds: Vec<f64>,
}

impl Summary {
    /// None without any round.
    pub fn of(rounds: Vec<f64>) -> Option<Self> {
        let mut sorted = rounds.clone();
        sorted.sort_by(f64::total_cmp);
        let (&min, &max) = (sorted.first()?, sorted.last()?);
        let middle = sorted.len() / 2;
        let median = if sorted.len() % 2 == 1 {
            sorted[middle]
        } else {
            f64::midpoint(sorted[middle - 1], sorted[middle])
        };
        Some(Self {
            median,
            min,
            max,
            rounds,
        })
    }

    /// How far the rounds lie apart, as a share of the median.
    pub fn spread(&self) -> f64 {
        if self.median > 0.0 {
            (self.max - self.min) / self.median
        } else {
            0.0
        }
    }
}

/// Counts of durations in buckets that are 1/64 of an octave wide or finer (under 1.6 % off), in ns.
pub struct Histogram {
    buckets: Vec<u64>,
    count: u64,
}

const SUB_BITS: u32 = 6;
const SUB: u64 = 1 << SUB_BITS;

impl Default for Histogram {
    fn default() -> Self {
        Self {
            buckets: vec![0; ((64 - SUB_BITS + 1) as u64 * SUB) as usize],
            count: 0,
        }
    }
}

impl Histogram {
    /// Values under 2 * SUB have a bucket each; above, each octave has SUB buckets.
    fn bucket(ns: u64) -> usize {
        let octave = (64 - ns.leading_zeros()).saturating_sub(SUB_BITS + 1);
        ((u64::from(octave) << SUB_BITS) + (ns >> octave)) as usize
    }

    fn middle(bucket: usize) -> f64 {
        let bucket = bucket as u64;
        let octave = (bucket >> SUB_BITS).saturating_sub(1);
        let low = (bucket - (octave << SUB_BITS)) << octave;
        low as f64 + ((1u64 << octave) - 1) as f64 / 2.0
    }

    pub fn add(&mut self, ns: u64) {
        self.buckets[Self::bucket(ns)] += 1;
        self.count += 1;
    }

    pub fn count(&self) -> u64 {
        self.count
    }

    /// The value under which the share `q` of the durations lies; 0 when there are none.
    pub fn quantile(&self, q: f64) -> f64 {
        let rank = (q * self.count as f64).ceil().max(1.0) as u64;
        let mut seen = 0;
        for (bucket, &count) in self.buckets.iter().enumerate() {
            seen += count;
            if count > 0 && seen >= rank {
                return Self::middle(bucket);
            }
        }
        0.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn median_of_odd_and_even() {
        assert_eq!(Summary::of(vec![3.0, 1.0, 2.0]).unwrap().median, 2.0);
        let even = Summary::of(vec![4.0, 1.0, 2.0, 3.0]).unwrap();
        assert_eq!((even.median, even.min, even.max), (2.5, 1.0, 4.0));
        assert_eq!(
            even.rounds,
            [4.0, 1.0, 2.0, 3.0],
            "the order of the rounds is kept"
        );
        assert!(Summary::of(vec![]).is_none());
    }

    #[test]
    fn buckets_are_contiguous_and_fine() {
        let mut last = 0;
        for ns in 0..1_000_000u64 {
            let bucket = Histogram::bucket(ns);
            assert!(bucket == last || bucket == last + 1, "a gap at {ns}");
            assert!(
                (Histogram::middle(bucket) - ns as f64).abs() <= ns as f64 / 64.0,
                "{ns} is far from its bucket"
            );
            last = bucket;
        }
        let mut histogram = Histogram::default();
        histogram.add(u64::MAX);
        assert_eq!(histogram.count(), 1);
    }

    #[test]
    fn quantiles_of_a_known_distribution() {
        let mut histogram = Histogram::default();
        assert_eq!(histogram.quantile(0.5), 0.0);
        (1..=1000).for_each(|ns| histogram.add(ns * 100));
        for (q, wanted) in [
            (0.5, 50_000.0),
            (0.99, 99_000.0),
            (0.0, 100.0),
            (1.0, 100_000.0),
        ] {
            let got = histogram.quantile(q);
            assert!(
                (got - wanted).abs() <= wanted / 50.0,
                "quantile {q} is {got}, not {wanted}"
            );
        }
    }
}
