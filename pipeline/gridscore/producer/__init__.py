"""The producer room: events on their way into a map, no faster than the jobs and the members can take them."""
