//! The commands. What a command did before a step failed is undone, the last first.

use std::path::{Path, PathBuf};

use spi::ids::{CHAIN_PROVIDER, DLL_NAME, DUMMY_PROVIDER};

use crate::plan::{self, ListedEntry, Listing, State};
use crate::system::{self, Installed};
use crate::{Exit, Report};

type Done = Result<Report, Report>;

pub fn install(dir: Option<PathBuf>) -> Done {
    let dir = match dir {
        Some(dir) => std::path::absolute(&dir).map_err(|e| system::io_error("--dir", &e))?,
        None => system::own_dir()?,
    };
    system::take_turn()?;
    let catalog = system::catalog()?;
    match plan::state(&catalog) {
        State::Absent => {}
        State::Complete if mends().is_empty() => {
            return Err(Report::new(Exit::NothingToDo, "already installed"));
        }
        State::Complete => return Err(half(&mends())),
        State::Broken(wrong) => return Err(half(&wrong)),
    }
    if !dir.join(DLL_NAME).is_file() {
        let text = format!("there is no {DLL_NAME} in {}; see --dir", dir.display());
        return Err(Report::new(Exit::Failed, text));
    }
    if system::installed_dll() == Installed::Foreign {
        let text = format!("{} is somebody else's", system::system_dll().display());
        return Err(Report::new(Exit::InTheWay, text));
    }
    if plan::bases(&catalog).is_empty() {
        return Err(no_base());
    }
    let mut undo = Undo(Vec::new());
    system::copy_dll()?;
    undo.push(|| drop(system::delete_dll()));
    system::set_install_dir(&dir)?;
    undo.push(|| drop(system::delete_registry()));
    enter(&mut undo)?;
    undo.keep();
    Ok(Report::new(
        Exit::Done,
        format!(
            "installed; the provider is {}",
            dir.join(DLL_NAME).display()
        ),
    ))
}

/// Makes the catalog's part whole: the hidden entry if there is none, all chains, the order.
fn enter(undo: &mut Undo) -> Result<(), Report> {
    let catalog = system::catalog()?;
    if plan::dummy_id(&catalog).is_none() {
        let bases = plan::bases(&catalog);
        let base = bases.first().ok_or_else(no_base)?;
        system::install(&DUMMY_PROVIDER, &[plan::dummy(base)])?;
        undo.push(|| drop(system::deinstall(&DUMMY_PROVIDER)));
    }
    let catalog = system::catalog()?;
    let dummy = plan::dummy_id(&catalog).ok_or_else(lost)?;
    system::install(&CHAIN_PROVIDER, &plan::chains(&catalog, dummy))?;
    undo.push(|| drop(system::deinstall(&CHAIN_PROVIDER)));
    system::write_order(plan::order(&system::catalog()?))?;
    system::categorize(&DUMMY_PROVIDER);
    match plan::state(&system::catalog()?) {
        State::Complete => Ok(()),
        _ => Err(lost()),
    }
}

fn no_base() -> Report {
    Report::new(Exit::InTheWay, "the catalog has no TCP and no UDP")
}

fn lost() -> Report {
    Report::new(Exit::Failed, "the catalog does not show what was installed")
}

fn half(wrong: &[String]) -> Report {
    let text = format!(
        "half an installation is there ({}); try `inst_lsp repair`",
        wrong.join("; ")
    );
    Report::new(Exit::InTheWay, text)
}

pub fn remove() -> Done {
    system::take_turn()?;
    let catalog = system::catalog()?;
    let chains = plan::has_chains(&catalog);
    let dummy = plan::dummy_id(&catalog).is_some();
    let dll = !matches!(
        system::installed_dll(),
        Installed::Nothing | Installed::Foreign
    );
    let registered = system::install_dir().is_some();
    if !(chains || dummy || dll || registered) {
        return Err(Report::new(Exit::NothingToDo, "not installed"));
    }
    let foreign = plan::through_us(&catalog);
    if !foreign.is_empty() {
        let text = format!(
            "remove these first, they go through {DLL_NAME}: {}",
            foreign.join(", ")
        );
        return Err(Report::new(Exit::InTheWay, text));
    }
    // Chains first: without the hidden entry they would lead nowhere. Then what only they need.
    if chains {
        system::deinstall(&CHAIN_PROVIDER)?;
    }
    if dummy {
        system::deinstall(&DUMMY_PROVIDER)?;
    }
    system::delete_registry()?;
    let gone = !dll || system::delete_dll()?;
    Ok(Report::new(
        Exit::Done,
        match gone {
            true => "removed".to_owned(),
            false => format!("removed; {DLL_NAME} is in use and goes at the next start of Windows"),
        },
    ))
}

pub fn list() -> Done {
    let catalog = system::catalog()?;
    let (state, mut problems) = match plan::state(&catalog) {
        State::Absent => ("not installed", Vec::new()),
        State::Complete => ("installed", mends()),
        State::Broken(wrong) => ("half installed", wrong),
    };
    let state = if problems.is_empty() {
        state
    } else {
        "half installed"
    };
    problems.sort();
    let entries = catalog
        .iter()
        .map(|e| ListedEntry::new(e, system::provider_path(&e.ProviderId)));
    let mut report = Report::new(Exit::Done, state);
    report.list = Some(Box::new(Listing {
        state,
        problems,
        dll: system::system_dll().display().to_string(),
        install_dir: system::install_dir(),
        entries: entries.collect(),
    }));
    Ok(report)
}

/// What is wrong outside the catalog, when the catalog is as it should be.
fn mends() -> Vec<String> {
    let mut wrong = Vec::new();
    let dll = system::system_dll();
    match system::installed_dll() {
        Installed::Ours => {}
        Installed::Nothing => wrong.push(format!("{} is missing", dll.display())),
        Installed::Other => wrong.push(format!("{} is another version", dll.display())),
        Installed::Foreign => wrong.push(format!("{} is somebody else's", dll.display())),
    }
    match system::install_dir() {
        None => wrong.push("the directory of the provider is not registered".into()),
        Some(dir) if !Path::new(&dir).join(DLL_NAME).is_file() => {
            wrong.push(format!("there is no {DLL_NAME} in {dir}"));
        }
        Some(_) => {}
    }
    wrong
}

pub fn repair() -> Done {
    system::take_turn()?;
    let catalog = system::catalog()?;
    let outside = mends();
    let wrong = match plan::state(&catalog) {
        State::Complete => Vec::new(),
        State::Broken(wrong) => wrong,
        // A file or a key alone is what a failed removal leaves.
        State::Absent => {
            remove()?;
            return Ok(Report::new(
                Exit::Done,
                "removed the rest of an installation",
            ));
        }
    };
    if wrong.is_empty() && outside.is_empty() {
        return Err(Report::new(Exit::NothingToDo, "nothing to repair"));
    }
    match system::installed_dll() {
        Installed::Ours => {}
        Installed::Nothing | Installed::Other => system::copy_dll()?,
        Installed::Foreign => return Err(half(&outside)),
    }
    let registered = system::install_dir().is_some_and(|d| Path::new(&d).join(DLL_NAME).is_file());
    if !registered {
        system::set_install_dir(&system::own_dir()?)?;
    }
    if !plan::chains_whole(&catalog) {
        if plan::has_chains(&catalog) {
            system::deinstall(&CHAIN_PROVIDER)?;
        }
        let mut undo = Undo(Vec::new());
        enter(&mut undo)?;
        undo.keep();
    } else if !plan::in_order(&catalog) {
        system::write_order(plan::order(&catalog))?;
    }
    let mended = [wrong, outside].concat().join("; ");
    Ok(Report::new(Exit::Done, format!("repaired: {mended}")))
}

/// Steps to take back, unless [`Undo::keep`] says that all went well.
struct Undo(Vec<fn()>);

impl Undo {
    fn push(&mut self, step: fn()) {
        self.0.push(step);
    }

    fn keep(mut self) {
        self.0.clear();
    }
}

impl Drop for Undo {
    fn drop(&mut self) {
        while let Some(step) = self.0.pop() {
            step();
        }
    }
}
