"""Federation: the update a site sends, its checks and aggregation, what a site keeps, and the methods."""
