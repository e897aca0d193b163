//! The pages cannot lie: every command in README, ARCHITECTURE and docs is run or at least parsed, from the pages' own text.
//!
//! | in a page | what happens to it here |
//! |---|---|
//! | a `sh` block | typed into one shell for each page, with the real binaries; every command has to succeed ([`session`]) |
//! | a `sh` block below `<!-- not run: REASON -->` | its commands of ours and its make targets are parsed ([`parse`]) |
//! | a `toml` block | a server starts with it as its `--config` |
//! | `make …`, `shoes-vz-… …` in running text or a table | parsed |
//! | `--flag`, `SHOESVZ_…` in running text | has to be a flag or a variable of some program |
//! | a link to a file | the file is there |
//!
//! Why not `trycmd`: it runs each command alone, without a shell, and servers have to live beside their clients. The shell
//! is bash itself, so that nothing here has to understand its grammar; `snapbox` compares the snapshots.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod page;
mod parse;
mod programs;
mod session;
mod snapshots;

use std::{fs, path::Path};

use page::{Block, Page};
use shoes_vz_testkit::bins::{Bins, repository};

/// Every page, the ones in `docs/` by what is there.
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

/// With a line for each command that is not what its program takes.
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
fn every_command_in_every_page_is_one_that_its_program_takes() {
    assert_parses(&pages());
}

#[test]
fn every_flag_and_variable_in_running_text_belongs_to_a_program() {
    let known = programs::all_help();
    let wrong: Vec<_> = pages().iter().flat_map(|page| page.unknown_names(&known)).collect();
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

#[test]
fn every_file_a_page_links_to_is_there() {
    let missing = |page: &Page| {
        let folder = Path::new(&page.name).parent().unwrap().to_owned();
        let there = move |(line, to): &(usize, String)| {
            (!repository().join(&folder).join(to).exists()).then(|| format!("line {line}: {to}"))
        };
        page.links.iter().filter_map(there).map(|m| format!("{}, {m}", page.name)).collect::<Vec<_>>()
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
        assert!(text.contains(right), "{name} has no {right} any more; choose another for this test");
        let altered = Page::read(name, &text.replace(right, wrong));
        let found = parse::check(&[altered]).wrong.join("\n");
        let word = wrong.split(' ').find(|w| !right.contains(*w)).unwrap();
        assert!(found.contains(word), "{name} with {wrong}: {found:?}");
    }
    let prose = Page::read("x.md", "Pass `--max-runers 2` or set `SHOESVZ_SERVER_GRCP_ADDR`.");
    assert_eq!(prose.unknown_names(&programs::all_help()).len(), 2);
}

#[tokio::test]
async fn a_command_of_a_page_that_fails_or_that_nobody_knows_fails_the_page() {
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
async fn what_readme_says_to_type_works_as_it_is_typed() {
    let ran = session::run(&page("README.md")).await.unwrap();
    assert!(ran >= 10, "only {ran} commands were run");
}

#[tokio::test]
async fn every_command_of_the_go_implementation_starts_what_it_says() {
    let ran = session::run(&page("docs/from-go.md")).await.unwrap();
    assert!(ran >= 8, "only {ran} commands were run");
}

#[tokio::test]
async fn what_the_other_pages_say_to_type_works() {
    for page in pages() {
        if !["README.md", "README.ja.md", "docs/from-go.md"].contains(&page.name.as_str()) {
            session::run(&page).await.unwrap();
        }
    }
}

#[test]
fn the_japanese_readme_says_the_same_commands() {
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
async fn a_server_starts_with_every_configuration_shown() {
    let bins = Bins::find();
    for page in pages() {
        for block in page.blocks.iter().filter(|b| b.language == "toml") {
            programs::server_starts_with(&bins, &block.text)
                .await
                .unwrap_or_else(|e| panic!("{}, line {}: {e}", page.name, block.line));
        }
    }
}
