//! The archive over storage in memory: what comes back, what is written at all, and what others may do to it.

mod hostile;
mod pushes;
mod world;
