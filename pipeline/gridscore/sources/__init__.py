"""The sources room: one file a plug, each of which brings live data into an event map."""
