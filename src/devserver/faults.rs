//! Faults on demand: rules that say which requests go wrong and how, and gates that hold requests.
//!
//! Decides which rule strikes; doing it is the service's job. Rules are asked in order, each counts every request
//! that it matches, and the first whose turn it is strikes.

use std::collections::BTreeMap;

use http::{HeaderName, HeaderValue, StatusCode};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use super::request::Operation;

/// Which requests go wrong.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Rule {
    /// An operation's name, or `*`.
    operation: String,
    /// Only keys that contain this.
    #[serde(default)]
    key: Option<String>,
    /// Only this part number.
    #[serde(default)]
    part: Option<u32>,
    /// Matching requests to let pass first.
    #[serde(default)]
    skip: u64,
    /// Matching requests to strike then; none: all.
    #[serde(default)]
    times: Option<u64>,
    action: Action,
}

/// How they go wrong. Members may be combined: a delay with a status, a hold with a reset.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Action {
    /// Answer with this status instead of doing anything.
    pub(crate) status: Option<u16>,
    /// The error code of that answer; `InjectedFault` if missing.
    pub(crate) code: Option<String>,
    /// Further headers of that answer.
    pub(crate) headers: BTreeMap<String, String>,
    /// Reset the connection.
    pub(crate) reset: Option<Reset>,
    /// Wait before anything is done.
    pub(crate) delay_ms: Option<u64>,
    /// Break off the reply's body after so many bytes.
    pub(crate) truncate_body: Option<u64>,
    /// Change a byte of the body: of the received one where there is one, else of the reply's.
    pub(crate) corrupt_body: bool,
    /// Answer with a wrong `x-oss-hash-crc64ecma`.
    pub(crate) corrupt_crc: bool,
    /// Answer with something that is no reply of the service, instead of doing anything.
    pub(crate) garbage: Option<Garbage>,
    /// Wait at this gate before anything is done.
    pub(crate) hold: Option<String>,
    /// Wait at this gate when all is done, before the reply.
    pub(crate) hold_after: Option<String>,
}

/// When to reset the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Reset {
    /// Before anything is done.
    Before,
    /// When all is done, instead of the reply.
    After,
}

/// What to answer in place of a reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Garbage {
    /// A page as proxies make it; status 502 unless the rule says another.
    Html,
    /// A document that breaks off; status 200 unless the rule says another.
    Xml,
    /// Nothing at all; status 200 unless the rule says another.
    Empty,
}

impl Garbage {
    /// Default status, content type and body.
    pub(crate) fn reply(self) -> (StatusCode, &'static str, &'static str) {
        match self {
            Self::Html => (StatusCode::BAD_GATEWAY, "text/html", "<html><body><h1>502 Bad Gateway</h1></body></html>"),
            Self::Xml => (StatusCode::OK, "application/xml", "<?xml version=\"1.0\"?><Result><Key>half of a"),
            Self::Empty => (StatusCode::OK, "application/xml", ""),
        }
    }
}

impl Rule {
    fn check(&self) -> Result<(), String> {
        if self.operation != "*" && !Operation::ALL.iter().any(|known| known.name() == self.operation) {
            return Err(format!("unknown operation {}", self.operation));
        }
        let action = &self.action;
        if action.status.is_some_and(|status| !(200..=599).contains(&status)) {
            return Err("a status lies between 200 and 599".into());
        }
        for (name, value) in &action.headers {
            if HeaderName::from_bytes(name.as_bytes()).is_err() || HeaderValue::from_str(value).is_err() {
                return Err(format!("bad header {name}"));
            }
        }
        if serde_json::to_value(action).ok() == serde_json::to_value(Action::default()).ok() {
            return Err("a rule needs an action".into());
        }
        Ok(())
    }

    fn matches(&self, operation: Operation, key: Option<&str>, part: Option<u32>) -> bool {
        (self.operation == "*" || self.operation == operation.name())
            && self.key.as_deref().is_none_or(|wanted| key.is_some_and(|key| key.contains(wanted)))
            && self.part.is_none_or(|wanted| part == Some(wanted))
    }
}

/// A rule and what it has seen, as `GET /_dev/faults` shows it.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Tally {
    #[serde(flatten)]
    rule: Rule,
    seen: u64,
    applied: u64,
}

/// The rules in force.
#[derive(Debug, Default)]
pub(crate) struct Faults {
    rules: Mutex<Vec<Tally>>,
    pub(crate) gates: Gates,
}

impl Faults {
    /// Puts `rules` in the place of those before; the gates they name are closed.
    pub(crate) fn replace(&self, rules: Vec<Rule>) -> Result<(), String> {
        rules.iter().try_for_each(Rule::check)?;
        for action in rules.iter().map(|rule| &rule.action) {
            action.hold.iter().chain(&action.hold_after).for_each(|gate| self.gates.set(gate, false));
        }
        *self.rules.lock() = rules.into_iter().map(|rule| Tally { rule, seen: 0, applied: 0 }).collect();
        Ok(())
    }

    pub(crate) fn tallies(&self) -> Vec<Tally> {
        self.rules.lock().clone()
    }

    /// What is to go wrong with this request.
    pub(crate) fn pick(&self, operation: Operation, key: Option<&str>, part: Option<u32>) -> Option<Action> {
        let mut action = None;
        for tally in &mut *self.rules.lock() {
            if !tally.rule.matches(operation, key, part) {
                continue;
            }
            tally.seen += 1;
            let turn = tally.seen > tally.rule.skip && tally.rule.times.is_none_or(|times| tally.applied < times);
            if turn && action.is_none() {
                tally.applied += 1;
                action = Some(tally.rule.action.clone());
            }
        }
        action
    }
}

#[derive(Debug)]
struct Gate {
    open: watch::Sender<bool>,
    waiting: usize,
}

impl Default for Gate {
    fn default() -> Self {
        Self { open: watch::Sender::new(false), waiting: 0 }
    }
}

/// A gate as `GET /_dev/gates` shows it.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub(crate) struct GateState {
    open: bool,
    waiting: usize,
}

/// Gates by name; one that nobody has opened is closed.
#[derive(Debug, Default)]
pub(crate) struct Gates {
    gates: Mutex<BTreeMap<String, Gate>>,
}

impl Gates {
    /// Opens or closes a gate; opening lets go all that wait, and all that come later pass.
    pub(crate) fn set(&self, name: &str, open: bool) {
        self.gates.lock().entry(name.into()).or_default().open.send_replace(open);
    }

    pub(crate) fn open_all(&self) {
        for gate in self.gates.lock().values() {
            gate.open.send_replace(true);
        }
    }

    pub(crate) fn states(&self) -> BTreeMap<String, GateState> {
        let state = |gate: &Gate| GateState { open: *gate.open.borrow(), waiting: gate.waiting };
        self.gates.lock().iter().map(|(name, gate)| (name.clone(), state(gate))).collect()
    }

    /// Waits until the gate is open.
    pub(crate) async fn pass(&self, name: &str) {
        let mut open = {
            let mut gates = self.gates.lock();
            let gate = gates.entry(name.into()).or_default();
            gate.waiting += 1;
            gate.open.subscribe()
        };
        let _waiting = Waiting { gates: self, name };
        // Gates are never removed, so that waiting cannot fail.
        open.wait_for(|open| *open).await.map(drop).unwrap_or_default();
    }
}

/// Counts one that waits, also when its connection goes.
struct Waiting<'a> {
    gates: &'a Gates,
    name: &'a str,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        if let Some(gate) = self.gates.gates.lock().get_mut(self.name) {
            gate.waiting -= 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    fn faults(json: &str) -> Faults {
        let faults = Faults::default();
        faults.replace(serde_json::from_str(json).unwrap()).unwrap();
        faults
    }

    #[test]
    fn a_rule_strikes_in_its_turn() {
        let faults = faults(r#"[{"operation": "UploadPart", "skip": 1, "times": 2, "action": {"status": 503}}]"#);
        let picked: Vec<bool> = (0..5).map(|_| faults.pick(Operation::UploadPart, None, None).is_some()).collect();
        assert_eq!(picked, [false, true, true, false, false]);
        assert!(faults.pick(Operation::PutObject, None, None).is_none());
        assert_eq!((faults.tallies()[0].seen, faults.tallies()[0].applied), (5, 2));
    }

    #[test]
    fn key_and_part_narrow_a_rule() {
        let faults = faults(r#"[{"operation": "*", "key": "big", "part": 3, "action": {"reset": "after"}}]"#);
        assert!(faults.pick(Operation::UploadPart, Some("a/big.bin"), Some(3)).is_some());
        assert!(faults.pick(Operation::UploadPart, Some("a/big.bin"), Some(4)).is_none());
        assert!(faults.pick(Operation::UploadPart, Some("a/small"), Some(3)).is_none());
        assert!(faults.pick(Operation::ListObjectsV2, None, None).is_none());
    }

    #[test]
    fn the_first_rule_whose_turn_it_is_strikes() {
        let faults = faults(
            r#"[{"operation": "*", "times": 1, "action": {"status": 500}}, {"operation": "*", "action": {"status": 501}}]"#,
        );
        let status = || faults.pick(Operation::GetObject, None, None).and_then(|action| action.status);
        assert_eq!([status(), status()], [Some(500), Some(501)]);
    }

    #[test]
    fn rules_that_make_no_sense_are_refused() {
        for rule in [
            r#"{"operation": "Nope", "action": {"status": 500}}"#,
            r#"{"operation": "*", "action": {}}"#,
            r#"{"operation": "*", "action": {"status": 99}}"#,
            r#"{"operation": "*", "action": {"status": 500, "headers": {"a b": "c"}}}"#,
        ] {
            let rule = serde_json::from_str(rule).unwrap();
            assert!(Faults::default().replace(vec![rule]).is_err());
        }
        assert!(serde_json::from_str::<Rule>(r#"{"operation": "*", "action": {"sttus": 500}}"#).is_err());
    }

    #[tokio::test]
    async fn a_gate_holds_until_it_is_opened() {
        let gates = Arc::new(Gates::default());
        let held = tokio::spawn({
            let gates = gates.clone();
            async move { gates.pass("g").await }
        });
        while gates.states().get("g").is_none_or(|gate| gate.waiting == 0) {
            tokio::task::yield_now().await;
        }
        assert!(!held.is_finished());
        gates.set("g", true);
        held.await.unwrap();
        gates.pass("g").await;
        assert_eq!(gates.states()["g"], GateState { open: true, waiting: 0 });
    }
}
