"""Federation: updates, their checks and aggregation, the stored state of a site, and the methods."""
