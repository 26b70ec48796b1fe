"""What is measured beside the data layer: bare drivers and other tools. Only here a benchmark imports a driver."""
