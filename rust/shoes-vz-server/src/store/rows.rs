//! Converts between rows and values. A value that is searched for has a column; the rest is JSON, which only gains fields.

use std::{collections::HashMap, time::Duration};

use jiff::Timestamp;
use prost::Message as _;
use rusqlite::{Connection, Transaction, params};
use serde::{Deserialize, Serialize};
use shoes_vz_model::{RunnerId, RunnerName};
use shoes_vz_proto::agent as wire;

use crate::fleet::{
    agent::Agent,
    hot::Fallbacks,
    labels::Offers,
    runner::{Delivery, Ended, Live, Phase, Placed, Runner, Termination},
    values::{Script, VmSize},
};

/// What the store holds at start.
#[derive(Debug, Default)]
pub struct Loaded {
    pub agents: Vec<Agent>,
    /// Every runner, including tombstones.
    pub runners: Vec<Runner>,
}

pub(super) enum LoadError {
    Sqlite(rusqlite::Error),
    Row(String),
}

impl From<rusqlite::Error> for LoadError {
    fn from(e: rusqlite::Error) -> Self {
        Self::Sqlite(e)
    }
}

#[derive(Default, Serialize, Deserialize)]
struct RunnerDetails {
    resource_type: String,
    #[serde(default, alias = "shape")]
    size: VmSize,
    #[serde(default)]
    wanted_template: String,
    labels: Vec<String>,
    request_id: String,
    requested_at: Timestamp,
    #[serde(default)]
    refusals: u32,
    claims: u32,
    #[serde(default)]
    template: String,
    #[serde(default)]
    queued_us: u64,
    #[serde(default)]
    delivered: bool,
    #[serde(default, alias = "doom")]
    termination: Option<Termination>,
    #[serde(default)]
    hostname: String,
    #[serde(default)]
    ended_at: Option<Timestamp>,
}

#[derive(Serialize, Deserialize)]
struct AgentDetails {
    max_runners: u32,
    cpu_cores: u32,
    memory_bytes: u64,
    last_seen: Timestamp,
}

pub(super) fn put_runner(transaction: &Transaction<'_>, runner: &Runner) -> rusqlite::Result<usize> {
    let mut details = RunnerDetails {
        resource_type: runner.resource_type.to_string(),
        size: runner.size,
        wanted_template: runner.template.clone(),
        labels: runner.labels.clone(),
        request_id: runner.request_id.clone(),
        requested_at: runner.requested_at,
        refusals: runner.refusals,
        claims: runner.claims,
        ..RunnerDetails::default()
    };
    let micros = |d: Duration| u64::try_from(d.as_micros()).unwrap_or(u64::MAX);
    let (phase, agent, report) = match &runner.phase {
        Phase::Queued(_) => ("queued", None, None),
        Phase::Placed(placed) => {
            details.template.clone_from(&placed.template);
            details.queued_us = micros(placed.queued_for);
            details.delivered = matches!(placed.delivery, Delivery::Done);
            details.termination.clone_from(&placed.termination);
            ("placed", Some(placed.agent), placed.report.as_ref().map(wire::Runner::encode_to_vec))
        }
        Phase::Ended(ended) => {
            details.queued_us = micros(ended.queued_for);
            details.hostname.clone_from(&ended.hostname);
            details.ended_at = Some(ended.at);
            ("ended", ended.agent, Some(ended.report.encode_to_vec()))
        }
    };
    let mut put =
        transaction.prepare_cached("INSERT OR REPLACE INTO runners VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)")?;
    put.execute(params![
        runner.id.to_string(),
        runner.cloud_id.to_string(),
        runner.name.as_str(),
        phase,
        agent.map(|a| a.to_string()),
        json(&details)?,
        report,
    ])
}

pub(super) fn put_agent(transaction: &Transaction<'_>, agent: &Agent) -> rusqlite::Result<usize> {
    let details = AgentDetails {
        max_runners: agent.capacity.max_runners,
        cpu_cores: agent.capacity.cpu_cores,
        memory_bytes: agent.capacity.memory_bytes,
        last_seen: agent.last_seen,
    };
    let info = agent.info.as_ref().map(wire::AgentInfo::encode_to_vec);
    let mut put = transaction.prepare_cached("INSERT OR REPLACE INTO agents VALUES (?1, ?2, ?3, ?4, ?5)")?;
    let cordon = agent.cordon.as_ref().map(json).transpose()?;
    put.execute(params![agent.id.to_string(), agent.hostname, json(&details)?, info, cordon])
}

fn json(value: &impl Serialize) -> rusqlite::Result<String> {
    serde_json::to_string(value).map_err(|e| rusqlite::Error::ToSqlConversionFailure(Box::new(e)))
}

pub(super) fn load(connection: &Connection) -> Result<Loaded, LoadError> {
    let mut scripts = HashMap::new();
    let mut query = connection.prepare("SELECT runner_id, script FROM scripts")?;
    let mut rows = query.query([])?;
    while let Some(row) = rows.next()? {
        scripts.insert(row.get::<_, String>(0)?, Script::new(row.get::<_, String>(1)?));
    }
    let mut loaded = Loaded::default();
    let mut query = connection.prepare("SELECT agent_id, hostname, details, info, cordon FROM agents")?;
    let mut rows = query.query([])?;
    while let Some(row) = rows.next()? {
        let id: String = row.get(0)?;
        loaded
            .agents
            .push(agent(row, &id).map_err(|reason| LoadError::Row(format!("agent {id}: {reason}")))?);
    }
    let mut query = connection
        .prepare("SELECT runner_id, cloud_id, runner_name, phase, agent_id, details, report FROM runners")?;
    let mut rows = query.query([])?;
    while let Some(row) = rows.next()? {
        let id: String = row.get(0)?;
        let script = scripts.remove(&id);
        loaded.runners.push(
            runner(row, &id, script).map_err(|reason| LoadError::Row(format!("runner {id}: {reason}")))?,
        );
    }
    Ok(loaded)
}

fn text(e: impl std::fmt::Display) -> String {
    e.to_string()
}

fn agent(row: &rusqlite::Row<'_>, id: &str) -> Result<Agent, String> {
    let details: AgentDetails =
        serde_json::from_str(&row.get::<_, String>(2).map_err(text)?).map_err(text)?;
    let info = row.get::<_, Option<Vec<u8>>>(3).map_err(text)?;
    let info = info.map(|bytes| wire::AgentInfo::decode(bytes.as_slice()).map_err(text)).transpose()?;
    let cordon = row.get::<_, Option<String>>(4).map_err(text)?;
    Ok(Agent {
        id: id.parse().map_err(text)?,
        hostname: row.get(1).map_err(text)?,
        capacity: wire::AgentCapacity {
            max_runners: details.max_runners,
            cpu_cores: details.cpu_cores,
            memory_bytes: details.memory_bytes,
        },
        offers: Offers::of(info.as_ref()),
        info,
        last_seen: details.last_seen,
        cordon: cordon.map(|c| serde_json::from_str(&c).map_err(text)).transpose()?,
        session: None,
        fallbacks: Fallbacks::default(),
    })
}

fn runner(row: &rusqlite::Row<'_>, id: &str, script: Option<Script>) -> Result<Runner, String> {
    let id: RunnerId = id.parse().map_err(text)?;
    let details: RunnerDetails =
        serde_json::from_str(&row.get::<_, String>(5).map_err(text)?).map_err(text)?;
    let column = |at: usize| row.get::<_, String>(at).map_err(text);
    let agent = row.get::<_, Option<String>>(4).map_err(text)?;
    let agent = agent.map(|a| a.parse().map_err(text)).transpose()?;
    let report = row.get::<_, Option<Vec<u8>>>(6).map_err(text)?;
    let report = report.map(|bytes| wire::Runner::decode(bytes.as_slice()).map_err(text)).transpose()?;
    let queued_for = Duration::from_micros(details.queued_us);
    let script = || script.ok_or("its setup script is missing");
    let phase = match column(3)?.as_str() {
        "queued" => Phase::Queued(script()?),
        "placed" => Phase::Placed(Placed {
            agent: agent.ok_or("it is placed without an agent")?,
            template: details.template,
            queued_for,
            delivery: if details.delivered { Delivery::Done } else { Delivery::Pending(script()?) },
            report,
            termination: details.termination,
        }),
        "ended" => Phase::Ended(Ended {
            agent,
            hostname: details.hostname,
            queued_for,
            report: report.ok_or("it ended without a report")?,
            at: details.ended_at.ok_or("it ended without a time")?,
        }),
        other => return Err(format!("unknown phase {other:?}")),
    };
    Ok(Runner {
        id,
        cloud_id: column(1)?.parse().map_err(text)?,
        name: RunnerName::recorded(&column(2)?).map_err(text)?,
        resource_type: details.resource_type.parse().map_err(text)?,
        size: details.size,
        template: details.wanted_template,
        labels: details.labels,
        request_id: details.request_id,
        requested_at: details.requested_at,
        refusals: details.refusals,
        claims: details.claims,
        phase,
        live: Live::default(),
    })
}
