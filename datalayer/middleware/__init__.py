"""One interceptor chain around every call: deadline, trace, metrics, retry, breaker."""
