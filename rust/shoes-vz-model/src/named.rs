//! Enums whose values have names, in reports, metric labels or texts: one row for each value.

/// Declares such an enum, with `ALL`, its values in their order, and `as_str`, a value's name.
#[macro_export]
macro_rules! named_enum {
    ($(#[$meta:meta])* pub enum $enum:ident { $($(#[$doc:meta])* $case:ident = $name:literal,)* }) => {
        $(#[$meta])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum $enum { $($(#[$doc])* $case,)* }

        impl $enum {
            pub const ALL: [Self; [$($name),*].len()] = [$(Self::$case),*];

            pub fn as_str(self) -> &'static str {
                match self { $(Self::$case => $name,)* }
            }
        }
    };
}
