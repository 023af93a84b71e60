//! Markdown, the machine, and a place for files.

use crate::Result;
use std::fmt::Write;
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use tempfile::TempDir;

/// One line of a table: a cell for each contestant, Millpond's first.
pub struct Row {
    /// What was measured, with its unit.
    pub label: String,
    /// Digits behind the point.
    pub decimals: usize,
    /// In the order of the columns.
    pub cells: Vec<Samples>,
}

/// What the rounds gave.
pub struct Samples(pub Vec<f64>);

impl Samples {
    fn sorted(&self) -> Vec<f64> {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        sorted
    }

    fn median(&self) -> f64 {
        let sorted = self.sorted();
        sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN)
    }

    fn text(&self, decimals: usize) -> String {
        match self.sorted().as_slice() {
            [low, .., high] => format!("{:.decimals$} ({low:.decimals$}–{high:.decimals$})", self.median()),
            _ => format!("{:.decimals$}", self.median()),
        }
    }
}

/// A table with a column for each contestant, and Millpond's ratio to each of the others.
pub fn table(title: &str, contestants: &[&str], rows: &[Row]) -> String {
    let Some((first, others)) = contestants.split_first() else { return String::new() };
    let mut text = format!("### {title}\n\n| |");
    for name in contestants {
        let _ = write!(text, " {name} |");
    }
    for name in others {
        let _ = write!(text, " {first} ÷ {name} |");
    }
    let _ = write!(text, "\n|---|{}\n", "---:|".repeat(contestants.len() + others.len()));
    for row in rows {
        let _ = write!(text, "| {} |", row.label);
        for cell in &row.cells {
            let _ = write!(text, " {} |", cell.text(row.decimals));
        }
        for ratio in ratios(row) {
            let _ = write!(text, " {ratio} |");
        }
        text.push('\n');
    }
    text
}

fn ratios(row: &Row) -> Vec<String> {
    let Some((first, others)) = row.cells.split_first() else { return Vec::new() };
    others.iter().map(|other| format!("{:.2}", first.median() / other.median())).collect()
}

/// A folder in memory if there is one, so that the disk takes no part; the workers of a root's nginx may enter it.
pub fn folder() -> Result<TempDir> {
    let mut builder = tempfile::Builder::new();
    builder.prefix("millpond-bench-");
    let dir = builder.tempdir_in("/dev/shm").or_else(|_| builder.tempdir())?;
    fs::set_permissions(dir.path(), Permissions::from_mode(0o755))?;
    Ok(dir)
}

/// The machine, the date and the versions, in one line.
pub fn machine() -> Result<String> {
    let cpuinfo = fs::read_to_string("/proc/cpuinfo")?;
    let model = cpuinfo
        .lines()
        .find_map(|line| line.strip_prefix("model name"))
        .map_or("unknown CPU", |model| model.trim_start_matches(['\t', ' ', ':']));
    let cores = std::thread::available_parallelism()?;
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease")?;
    let date = chrono::Local::now().format("%Y-%m-%d");
    let nginx = version_of("nginx", "-v");
    let pingora = locked_version("pingora-proxy")?;
    Ok(format!(
        "{model}, {cores} cores, Linux {}, {date}; millpond {}, pingora-proxy {pingora}, {nginx}; \
         one worker thread each.",
        kernel.trim(),
        env!("CARGO_PKG_VERSION"),
    ))
}

/// What a program says of itself, on whichever stream.
fn version_of(program: &str, flag: &str) -> String {
    let Ok(output) = Command::new(program).arg(flag).output() else { return format!("no {program}") };
    let text = [output.stdout, output.stderr].concat();
    let text = String::from_utf8_lossy(&text);
    text.lines().next().unwrap_or("").trim_start_matches("nginx version: ").to_owned()
}

/// The version that Cargo.lock names.
fn locked_version(package: &str) -> Result<String> {
    let lock = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.lock"))?;
    let name = format!("name = \"{package}\"");
    let version = lock.lines().skip_while(|line| *line != name).find_map(|line| line.strip_prefix("version = "));
    Ok(version.unwrap_or("?").trim_matches('"').to_owned())
}
