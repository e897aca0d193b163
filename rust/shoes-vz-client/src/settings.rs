//! The settings with which the command line and the plugin reach the server.

use shoes_vz_process::{
    log,
    settings::{CONFIG, LOG, LOG_FORMAT, Mistakes, Program, Setting, Table, Values},
};

use crate::upstream::Server;

/// Every setting of the client. The plugin has the same ones, without the flags.
pub(crate) static PROGRAM: Program = Program {
    name: "shoes-vz-client",
    env_prefix: "SHOESVZ_CLIENT_",
    foreign_env: &[],
    settings: &[
        Setting::new("server", "HOST:PORT", "Address of shoes-vz-server").also_env("SHOESVZ_SERVER_ADDR"),
        Setting::new("token-file", "FILE", "File containing the bearer token that the server requires")
            .also_env("SHOESVZ_TOKEN_FILE"),
        CONFIG,
        LOG,
        LOG_FORMAT,
    ],
    tables: &[],
};

/// Flags for every setting, accepted before and after the subcommand.
#[derive(Debug)]
pub(crate) struct GlobalFlags;

impl Table for GlobalFlags {
    const PROGRAM: &'static Program = &PROGRAM;
    const GLOBAL: bool = true;
}

#[derive(Debug)]
pub(crate) struct Gathered {
    pub(crate) server: Result<Server, Mistakes>,
    pub(crate) log: (log::Filter, log::Format),
}

/// Reads every setting. `advice` says how to name a server where none is named.
pub(crate) fn gather(mut values: Values, advice: &str) -> Gathered {
    let log = values.log();
    let addr = values.parse("server", str::parse);
    if !values.is_given("server") && values.file_is_whole() {
        values.general_mistake(format_args!("no server address is set: {advice}"));
    }
    let token = values.token("token-file");
    let server = addr.map(|addr| Server::new(addr, token));
    Gathered { server: values.finish(server), log }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use shoes_vz_process::settings::Flags;

    use super::*;

    fn gathered(given: &[(&'static str, &str)]) -> Result<String, String> {
        let flags = Flags::<GlobalFlags>::of(given.iter().map(|(n, v)| (*n, (*v).as_ref())));
        let gathered = gather(Values::gather(&flags, [], Mistakes::default()), "use --server");
        gathered.server.map(|server| server.addr().to_string()).map_err(|mistakes| mistakes.to_string())
    }

    fn file(dir: &Path, text: &str) -> String {
        let path = dir.join("c.toml");
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    }

    #[test]
    fn a_flag_wins_over_the_file_and_the_file_over_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = file(dir.path(), "server = \"file:1\"\n");
        assert_eq!(gathered(&[("server", "flag:2"), ("config", &path)]), Ok("flag:2".into()));
        assert_eq!(gathered(&[("config", &path)]), Ok("file:1".into()));
        assert!(gathered(&[]).unwrap_err().contains("--server"));
    }

    #[test]
    fn every_mistake_is_reported_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let path = file(dir.path(), "sever = \"file:1\"\n");
        let all = gathered(&[("server", "no-port"), ("token-file", "/nowhere/token"), ("config", &path)])
            .unwrap_err();
        for part in ["/nowhere/token", "\"sever\"", "no-port", "3 settings"] {
            assert!(all.contains(part), "{all}");
        }
        // The file might name a server, so the missing server is not reported.
        let one = gathered(&[("config", "/nowhere/c.toml")]).unwrap_err();
        assert!(one.contains("/nowhere/c.toml") && one.contains("1 setting "), "{one}");
    }
}
