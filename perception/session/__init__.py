"""Recorded sessions: one MCAP file of everything that was sensed and concluded."""

from perception.session.reader import Session as Session
from perception.session.reader import read as read
from perception.session.writer import SessionWriter as SessionWriter
