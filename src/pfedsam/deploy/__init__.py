"""Deployment over several machines with NVFlare 2.9: one long-lived process per site, mutual TLS, filters that the site owns.

NVFlare is imported only in this package. It carries the messages and starts the processes; requests, replies, averaging and what may leave
a site are decided in `engine.rounds`, `engine.site_agent` and `federation.site_policy`, which do not depend on NVFlare.
"""
