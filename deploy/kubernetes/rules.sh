#!/bin/sh
# Prints the rules of deploy/prometheus/rules for the Prometheus operator: deploy/kubernetes/rules.sh | kubectl apply -f -
set -eu
cd "$(dirname "$0")/../prometheus/rules"
for file in *.yml; do
  printf -- '---\napiVersion: monitoring.coreos.com/v1\nkind: PrometheusRule\nmetadata:\n  name: demur-%s\nspec:\n' "${file%.yml}"
  sed 's/^\(.\)/  \1/' "$file"
done
