"""The storage: the protocol of all tables, runs that are published whole or not at all, the catalog, and sharing."""
