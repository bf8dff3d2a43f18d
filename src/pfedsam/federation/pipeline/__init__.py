"""What happens to the change of the shared parameters that a site has trained before it leaves the site, one file for each step."""
