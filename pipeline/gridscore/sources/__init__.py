"""The sources room: one folder a plug, each of which brings live data into an event map."""
