"""The atlas: what ablating every active feature does, alone and together with others, and which methods would have named it."""
