//! Setup scripts: plain ones, and those of the exact shape myshoes sends.

use std::process::Command;

use crate::bins::repository;
