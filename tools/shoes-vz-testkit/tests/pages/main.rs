//! The pages are tested: every command in README, ARCHITECTURE and docs is run, or at least parsed, from the text of the pages.
//!
//! | in a page | test |
//! |---|---|
//! | a `sh` block | run in one shell for each page, with the real binaries; every command must succeed ([`session`]) |
//! | a `sh` block below `<!-- not run: REASON -->` | its commands of shoes-vz and its make targets are parsed ([`parse`]) |
//! | a `toml` block | a server starts with it as its `--config` |
//! | `make …`, `shoes-vz-… …` in running text or a table | parsed |
//! | `--flag`, `SHOESVZ_…` in running text | must be a flag or a variable of a program |
//! | a link to a file | the file exists |
//!
//! `trycmd` does not fit: it runs each command alone, without a shell, but servers have to run beside their clients. The
//! shell is bash, so that nothing here has to parse its grammar; `snapbox` compares the snapshots.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod page;
mod parse;
mod programs;
mod session;
mod snapshots;

use std::{fs, path::Path};

use page::{Block, Page};
use shoes_vz_testkit::bins::{Bins, repository};

/// All pages, including every page in `docs/`.
fn pages() -> Vec<Page> {
    let mut names: Vec<_> = ["README.md", "README.ja.md", "ARCHITECTURE.md"].map(String::from).into();
    let docs = fs::read_dir(repository().join("docs")).unwrap().flatten();
    names.extend(
        docs.map(|e| format!("docs/{}", e.file_name().to_str().unwrap())).filter(|n| n.ends_with(".md")),
    );
    names.sort();
    names.iter().map(|name| page(name)).collect()
}

fn page(name: &str) -> Page {
    let text = fs::read_to_string(repository().join(name)).unwrap_or_else(|e| panic!("{name}: {e}"));
    Page::read(name, &text)
}

/// Asserts that every program accepts its commands; fails with a line for each other command.
fn assert_parses(pages: &[Page]) {
    let checked = parse::check(pages);
    for page in pages {
        let blocks = page.blocks.iter().filter(|b| b.is_shell());
        let (run, marked): (Vec<_>, Vec<_>) = blocks.partition(|b| b.not_run.is_none());
        let commands = |blocks: &[&Block]| blocks.iter().map(|b| b.commands().len()).sum::<usize>();
        let (run, parsed) = (commands(&run), commands(&marked));
        eprintln!(
            "{:24} {run:3} commands to run, {parsed:3} to parse, {:3} in running text",
            page.name,
            page.inline_commands().len()
        );
        for block in marked {
            eprintln!("    line {}: not run: {}", block.line, block.not_run.as_deref().unwrap_or_default());
        }
    }
    assert!(checked.wrong.is_empty(), "\n{}", checked.wrong.join("\n"));
    assert!(checked.right >= 20, "only {} commands were found in all pages", checked.right);
}

#[test]
fn every_command_in_every_page_is_accepted_by_its_program() {
    assert_parses(&pages());
}

#[test]
fn every_flag_and_variable_in_running_text_belongs_to_a_program() {
    let known = programs::all_help();
    let wrong: Vec<_> = pages().iter().flat_map(|page| page.unknown_names(&known)).collect();
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

#[test]
fn every_file_a_page_links_to_exists() {
    let missing = |page: &Page| {
        let folder = Path::new(&page.name).parent().unwrap().to_owned();
        let missing_file = move |(line, to): &(usize, String)| {
            (!repository().join(&folder).join(to).exists()).then(|| format!("line {line}: {to}"))
        };
        page.links.iter().filter_map(missing_file).map(|m| format!("{}, {m}", page.name)).collect::<Vec<_>>()
    };
    let missing: Vec<_> = pages().iter().flat_map(missing).collect();
    assert!(missing.is_empty(), "\n{}", missing.join("\n"));
}

#[test]
fn a_misspelt_flag_target_or_subcommand_in_a_page_is_found() {
    for (name, right, wrong) in [
        ("README.md", "--template-path", "--template-pth"),
        ("README.md", "--runner-name", "--runnername"),
        ("README.md", "make demo", "make dmeo"),
        ("README.md", "shoes-vz-client agents", "shoes-vz-client agnets"),
        ("docs/from-go.md", "-grpc-addr :50051", "-grcp-addr :50051"),
        ("docs/from-go.md", "-max-runners", "-maxrunners"),
        ("docs/on-a-mac.md", "template install-macos", "template instal-macos"),
    ] {
        let text = fs::read_to_string(repository().join(name)).unwrap();
        assert!(text.contains(right), "{name} does not contain {right}; choose another text for this test");
        let altered = Page::read(name, &text.replace(right, wrong));
        let found = parse::check(&[altered]).wrong.join("\n");
        let word = wrong.split(' ').find(|w| !right.contains(*w)).unwrap();
        assert!(found.contains(word), "{name} with {wrong}: {found:?}");
    }
    let prose = Page::read("x.md", "Pass `--max-runers 2` or set `SHOESVZ_SERVER_GRCP_ADDR`.");
    assert_eq!(prose.unknown_names(&programs::all_help()).len(), 2);
}

#[tokio::test]
async fn a_failing_or_unknown_command_in_a_page_fails_the_page() {
    for wrong in [
        "false",
        "frobnicate --now",
        "bin/shoes-vz-client --versoin",
        "make dmeo",
        "bin/shoes-vz-server --bogus",
    ] {
        let page =
            Page::read("x.md", &format!("```sh\ntrue\n{wrong} &&\n  true\n```\n").replace(" &&\n  true", ""));
        let failed = session::run(&page).await.unwrap_err();
        assert!(failed.contains(wrong), "{wrong}: {failed}");
    }
    let page =
        Page::read("x.md", "```sh\nbin/shoes-vz-client --version\nsh -c 'exit 3' # exit code 3\n```\n");
    assert_eq!(session::run(&page).await.unwrap(), 2);
}

#[tokio::test]
async fn the_commands_of_readme_work() {
    let ran = session::run(&page("README.md")).await.unwrap();
    assert!(ran >= 10, "only {ran} commands were run");
}

#[tokio::test]
async fn every_command_line_of_the_go_implementation_works() {
    let ran = session::run(&page("docs/from-go.md")).await.unwrap();
    assert!(ran >= 8, "only {ran} commands were run");
}

#[tokio::test]
async fn the_commands_of_the_other_pages_work() {
    for page in pages() {
        if !["README.md", "README.ja.md", "docs/from-go.md"].contains(&page.name.as_str()) {
            session::run(&page).await.unwrap();
        }
    }
}

#[test]
fn the_japanese_readme_has_the_same_commands() {
    let typed = |name: &str| -> Vec<String> {
        let page = page(name);
        page.blocks
            .iter()
            .filter(|b| b.is_shell() || b.language == "toml")
            .flat_map(Block::without_comments)
            .collect()
    };
    assert_eq!(typed("README.ja.md"), typed("README.md"));
}

#[tokio::test]
async fn a_server_starts_with_every_configuration_in_the_pages() {
    let bins = Bins::find();
    for page in pages() {
        for block in page.blocks.iter().filter(|b| b.language == "toml") {
            programs::server_starts_with(&bins, &block.text)
                .await
                .unwrap_or_else(|e| panic!("{}, line {}: {e}", page.name, block.line));
        }
    }
}
