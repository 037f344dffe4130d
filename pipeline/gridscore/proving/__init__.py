"""The proving room: the demo, the benchmarks and the soak. They use every other room, and no other imports them."""
