"""What tenants used: read of answers, written down once for each request, shown to the release's keepers."""
