"""The proving room: demo, benchmarks and soak. They use every other room; only their commands import them."""
