"""Operating the monitoring of runs: Prometheus and Grafana of this machine, or elsewhere."""
