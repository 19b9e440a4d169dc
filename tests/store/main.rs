//! The tier's store by itself: its promises, one thread against a model, many against each other, and what it keeps of what is asked for.

mod guarantees;
mod hit_ratio;
mod model;
mod race;
