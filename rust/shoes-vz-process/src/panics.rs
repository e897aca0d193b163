//! A panic is logged and counted, wherever it happens. The owner of the task decides what the panic ends.

use std::sync::atomic::{AtomicU64, Ordering};

static COUNT: AtomicU64 = AtomicU64::new(0);

/// How many panics this process has had since [`install_hook`].
pub fn count() -> u64 {
    COUNT.load(Ordering::Relaxed)
}

/// From now on each panic is logged on one line and counted. [`crate::log::start`] calls this.
pub fn install_hook() {
    std::panic::set_hook(Box::new(|info| {
        COUNT.fetch_add(1, Ordering::Relaxed);
        let at = info.location().map_or_else(String::new, ToString::to_string);
        let thread = std::thread::current();
        tracing::error!(
            message = "panic, which is a bug in shoes-vz: please report it",
            reason = reason(info.payload()),
            at,
            thread = thread.name().unwrap_or_default(),
        );
    }));
}

/// The text of a panic's payload, for the code that caught it.
pub fn reason(payload: &(dyn std::any::Any + Send)) -> &str {
    payload
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| payload.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("a panic without a message")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_payload_of_either_kind_gives_its_text() {
        assert_eq!(reason(&"static"), "static");
        assert_eq!(reason(&"owned".to_owned()), "owned");
        assert_eq!(reason(&7), "a panic without a message");
    }
}
