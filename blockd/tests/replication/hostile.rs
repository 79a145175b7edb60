//! Peers that are paired, and lie: every row of the checklist for the protocol (docs/reliability.md, P1 to P10).
//!
//! The other side is made by hand, frame by frame; ours is the real one, on a simulated host. What must come of it: a
//! refusal with its code, the end of the session, a replica that shows what it showed, and a next session that is served.

mod fetches;
mod guests;
mod lab;
mod sessions;
mod sources;
mod targets;
mod words;
