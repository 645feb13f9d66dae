"""A dashboard as Grafana's classic JSON, through Grafana's own SDK. Only this module imports the SDK, which is a
dependency of developers: the JSON is committed, and users need no SDK.
"""

import json
from collections.abc import Iterator, Sequence

from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import bargauge, common, prometheus, stat, table, timeseries
from grafana_foundation_sdk.models import dashboard as grafana

from orchestrator.dashboards.panel_layout import GridPlace, places
from orchestrator.dashboards.panel_values import (
    GRID_COLUMNS,
    Annotation,
    Board,
    Column,
    Drawing,
    Panel,
    Query,
    Row,
    Series,
    Threshold,
    Variable,
)

SCHEMA_VERSION = 39
"""Of Grafana 11; later ones migrate it when they load it."""
PLUGIN_VERSION = "11.0.0"
TAG = "convoy"
SHORT_NAME = 4
"""Characters of a name that has room to the left of a bar, which is a fifth of the panel. Others stand above it."""
BAR_PX, BAR_WITH_NAME_PX = 30, 38
LEAST_COLUMN_PX = 70
"""Of a column of a table."""
_SOURCE = common.DataSourceRef(type_val="prometheus", uid="${datasource}")
_LAST = common.ReduceDataOptions(calcs=["lastNotNull"], values=False, fields="")
_DASH = common.LineStyle(fill="dash", dash=[8, 6])


def dashboard_json(dashboard: Board) -> str:
    """The file that Grafana imports and provisions."""
    built = grafana.Dashboard(
        uid=dashboard.uid,
        title=dashboard.title,
        description=dashboard.description,
        tags=[TAG],
        timezone="browser",
        editable=False,
        graph_tooltip=grafana.DashboardCursorSync.CROSSHAIR,
        time=grafana.DashboardDashboardTime(from_val=dashboard.range_from, to="now"),
        refresh=dashboard.refresh,
        schema_version=SCHEMA_VERSION,
        panels=list(_panels(dashboard.rows)),
        templating=grafana.DashboardDashboardTemplating(
            list_val=[_datasource(), *(_variable(variable) for variable in dashboard.variables)]
        ),
        annotations=grafana.AnnotationContainer(list_val=[_annotation(each) for each in dashboard.annotations]),
        links=[
            grafana.DashboardLink(
                title="Convoy",
                type_val=grafana.DashboardLinkType.DASHBOARDS,
                tags=[TAG],
                icon="external link",
                include_vars=True,
                keep_time=True,
            )
        ],
    )
    return json.dumps(json.loads(JSONEncoder().encode(built)), indent=1, sort_keys=True, ensure_ascii=False) + "\n"


def _panels(rows: Sequence[Row]) -> Iterator[grafana.Panel | grafana.RowPanel]:
    number, top = 1, 0
    for row in rows:
        inner_top = top + 1 if row.title else top
        at = places(row.panels, inner_top)
        heading = number if row.title else None
        number += 1 if row.title else 0
        panels = [_panel(panel, place, number + i) for i, (panel, place) in enumerate(zip(row.panels, at, strict=True))]
        number += len(panels)
        if heading is not None:
            place = grafana.GridPos(h=1, w=GRID_COLUMNS, x=0, y=top)
            inside = panels if row.collapsed else []
            yield grafana.RowPanel(
                collapsed=row.collapsed, title=row.title, grid_pos=place, id_val=heading, panels=inside
            )
        if not row.collapsed:
            yield from panels
        top = inner_top if row.collapsed else max(place.y + place.height for place in at)


def _panel(panel: Panel, place: GridPlace, number: int) -> grafana.Panel:
    return grafana.Panel(
        type_val=panel.visual,
        id_val=number,
        plugin_version=PLUGIN_VERSION,
        title=panel.title,
        description=panel.description,
        datasource=_SOURCE,
        grid_pos=grafana.GridPos(h=place.height, w=place.width, x=place.x, y=place.y),
        targets=[_target(query, letter_of(i), panel) for i, query in enumerate(panel.queries)],
        transformations=_transformations(panel) if panel.visual == "table" else None,
        options=_options(panel),
        field_config=grafana.FieldConfigSource(defaults=_defaults(panel), overrides=_overrides(panel)),
    )


def letter_of(index: int) -> str:
    """The name of a panel's query: A, B, C, ..."""
    return chr(ord("A") + index)


def _target(query: Query, ref_id: str, panel: Panel) -> prometheus.Dataquery:
    as_table = panel.visual == "table"
    return prometheus.Dataquery(
        datasource=_SOURCE,
        editor_mode=prometheus.QueryEditorMode.CODE,
        expr=query.expr,
        format_val=prometheus.PromQueryFormat.TABLE if as_table else prometheus.PromQueryFormat.TIME_SERIES,
        instant=query.instant,
        range_val=not query.instant,
        legend_format=query.legend or panel.title,
        ref_id=ref_id,
    )


def _transformations(panel: Panel) -> list[grafana.DataTransformerConfig]:
    """One line for the results of all queries that share their labels; then the chosen columns in order."""
    names = [_field_of(column) for column in panel.columns]
    hidden = ["Time", *(name for name in map(_value_of, range(len(panel.queries))) if name not in names)]
    return [
        grafana.DataTransformerConfig(id_val="merge", options={}),
        grafana.DataTransformerConfig(
            id_val="organize",
            options={
                "excludeByName": dict.fromkeys(hidden, True),
                "includeByName": {},
                "indexByName": {name: i for i, name in enumerate(names)},
                "renameByName": dict(zip(names, (column.title for column in panel.columns), strict=True)),
            },
        ),
    ]


def _value_of(index: int) -> str:
    return f"Value #{letter_of(index)}"


def _field_of(column: Column) -> str:
    return f"Value #{column.source}" if len(column.source) == 1 else column.source


def _options(panel: Panel) -> object:
    match panel.visual:
        case "stat":
            many = len(panel.queries) > 1
            several = common.BigValueTextMode.VALUE_AND_NAME if many else common.BigValueTextMode.VALUE
            return stat.Options(
                graph_mode=common.BigValueGraphMode.AREA if panel.sparkline else common.BigValueGraphMode.NONE,
                color_mode=common.BigValueColorMode.VALUE,
                justify_mode=common.BigValueJustifyMode.CENTER,
                text_mode=common.BigValueTextMode.NAME if panel.names_only else several,
                reduce_options=_LAST,
            )
        case "bargauge":
            long_names = any("{{" in query.legend or len(query.legend) > SHORT_NAME for query in panel.queries)
            return bargauge.Options(
                display_mode=common.BarGaugeDisplayMode.BASIC,
                value_mode=common.BarGaugeValueMode.TEXT,
                name_placement=common.BarGaugeNamePlacement.TOP if long_names else common.BarGaugeNamePlacement.LEFT,
                show_unfilled=True,
                orientation=common.VizOrientation.HORIZONTAL,
                reduce_options=_LAST,
                max_viz_height=BAR_WITH_NAME_PX if long_names else BAR_PX,
                text=common.VizTextDisplayOptions(title_size=13, value_size=15),
            )
        case "table":
            return table.Options(show_header=True, cell_height=common.TableCellHeight.SM)
        case "timeseries":
            return timeseries.Options(
                legend=common.VizLegendOptions(
                    display_mode=common.LegendDisplayMode.LIST,
                    placement=common.LegendPlacement.BOTTOM,
                    show_legend=len(panel.queries) > 1 or "{{" in panel.queries[0].legend,
                ),
                tooltip=common.VizTooltipOptions(
                    mode=common.TooltipDisplayMode.MULTI, sort=common.SortOrder.DESCENDING
                ),
            )


def _defaults(panel: Panel) -> grafana.FieldConfig:
    custom: object | None = None
    if panel.visual == "timeseries":
        custom = _curve(panel.drawing, bool(panel.thresholds), panel.log_scale)
    elif panel.visual == "table":
        custom = common.TableFieldOptions(align=common.FieldTextAlignment.AUTO, min_width=LEAST_COLUMN_PX)
    return grafana.FieldConfig(
        unit=panel.unit,
        decimals=panel.decimals,
        min_val=panel.minimum,
        max_val=panel.maximum,
        thresholds=_thresholds(panel.thresholds),
        color=_color(panel),
        no_value=panel.empty,
        custom=custom,
    )


def _color(panel: Panel) -> grafana.FieldColor:
    if panel.color is not None:
        return grafana.FieldColor(mode=grafana.FieldColorModeId.FIXED, fixed_color=panel.color)
    if panel.visual in ("stat", "bargauge") and panel.thresholds:
        return grafana.FieldColor(mode=grafana.FieldColorModeId.THRESHOLDS)
    return grafana.FieldColor(mode=grafana.FieldColorModeId.PALETTE_CLASSIC)


def _thresholds(limits: Sequence[Threshold]) -> grafana.ThresholdsConfig:
    steps = [grafana.Threshold(value=limit.value, color=limit.color) for limit in limits]
    return grafana.ThresholdsConfig(
        mode=grafana.ThresholdsMode.ABSOLUTE, steps=steps or [grafana.Threshold(value=None, color="green")]
    )


def _curve(drawing: Drawing, limits: bool, log_scale: bool) -> common.GraphFieldConfig:
    """How the curves of a panel are drawn."""
    stacking = {"stacked": common.StackingMode.NORMAL, "share": common.StackingMode.PERCENT, "bars": "normal"}
    filled = {"area": 18, "stacked": 70, "share": 75, "bars": 80}
    steps = common.LineInterpolation.STEP_AFTER
    linear = common.ScaleDistributionConfig(type_val=common.ScaleDistribution.LINEAR)
    logarithmic = common.ScaleDistributionConfig(type_val=common.ScaleDistribution.LOG, log=10)
    styles = {"bars": common.GraphDrawStyle.BARS, "points": common.GraphDrawStyle.POINTS}
    return common.GraphFieldConfig(
        draw_style=styles.get(drawing, common.GraphDrawStyle.LINE),
        line_width=0 if drawing in ("stacked", "share", "bars") else 2,
        line_interpolation=steps if drawing == "steps" else common.LineInterpolation.LINEAR,
        fill_opacity=filled.get(drawing, 0),
        show_points=common.VisibilityMode.NEVER if drawing != "points" else common.VisibilityMode.ALWAYS,
        point_size=4,
        span_nulls=False,
        stacking=common.StackingConfig(
            mode=common.StackingMode(stacking.get(drawing, common.StackingMode.NONE)), group="A"
        ),
        scale_distribution=logarithmic if log_scale else linear,
        axis_border_show=False,
        thresholds_style=common.GraphThresholdsStyleConfig(
            mode=common.GraphThresholdsStyleMode.DASHED if limits else common.GraphThresholdsStyleMode.OFF
        ),
    )


def _overrides(panel: Panel) -> list[grafana.DashboardFieldConfigSourceOverrides]:
    named = [_override(name, _series_properties(series)) for name, series in panel.series.items()]
    return named + [_override(column.title, _column_properties(column)) for column in panel.columns]


def _override(name: str, properties: dict[str, object]) -> grafana.DashboardFieldConfigSourceOverrides:
    pattern = len(name) > 1 and name.startswith("/") and name.endswith("/")
    return grafana.DashboardFieldConfigSourceOverrides(
        matcher=grafana.MatcherConfig(id_val="byRegexp" if pattern else "byName", options=name),
        properties=[grafana.DynamicConfigValue(id_val=key, value=value) for key, value in properties.items()],
    )


def _series_properties(series: Series) -> dict[str, object]:
    found: dict[str, object] = {}
    if series.color is not None:
        found["color"] = grafana.FieldColor(mode=grafana.FieldColorModeId.FIXED, fixed_color=series.color)
    if series.unit is not None:
        found["unit"] = series.unit
    if series.right_axis:
        found["custom.axisPlacement"] = common.AxisPlacement.RIGHT
    if series.dashed:
        found["custom.lineStyle"] = _DASH
    if series.drawing is not None:
        curve = _curve(series.drawing, limits=False, log_scale=False)
        found["custom.lineInterpolation"] = curve.line_interpolation
        found["custom.fillOpacity"] = curve.fill_opacity
        found["custom.lineWidth"] = curve.line_width
        found["custom.stacking"] = curve.stacking
    return found


def _column_properties(column: Column) -> dict[str, object]:
    found: dict[str, object] = {"unit": column.unit}
    if column.decimals is not None:
        found["decimals"] = column.decimals
    if column.width is not None:
        found["custom.width"] = column.width
    if column.thresholds:
        found["thresholds"] = _thresholds(column.thresholds)
        found["color"] = grafana.FieldColor(mode=grafana.FieldColorModeId.THRESHOLDS)
        found["custom.cellOptions"] = {"type": "color-text"}
    if column.names:
        result = {text: {"color": color, "index": i} for i, (text, color) in enumerate(column.names.items())}
        found["mappings"] = [{"type": "value", "options": result}]
        found["custom.cellOptions"] = {"type": "color-text"}
    if column.gauge:
        found["min"], found["max"] = 0, 1
        found["color"] = grafana.FieldColor(mode=grafana.FieldColorModeId.FIXED, fixed_color="blue")
        found["custom.cellOptions"] = {"type": "gauge", "mode": "basic", "valueDisplayMode": "text"}
    if column.link is not None:
        found["links"] = [{"title": "Dashboard of the run", "url": column.link}]
    return found


def _datasource() -> grafana.VariableModel:
    return grafana.VariableModel(
        type_val=grafana.VariableType.DATASOURCE,
        name="datasource",
        label="Data source",
        query="prometheus",
        refresh=grafana.VariableRefresh.ON_DASHBOARD_LOAD,
    )


def _variable(variable: Variable) -> grafana.VariableModel:
    down, up = grafana.VariableSort.ALPHABETICAL_DESC, grafana.VariableSort.NATURAL_ASC
    everything = grafana.VariableOption(selected=True, text="All", value="$__all")
    return grafana.VariableModel(
        type_val=grafana.VariableType.QUERY,
        name=variable.name,
        label=variable.title,
        datasource=_SOURCE,
        query={"query": variable.query, "refId": f"variable-{variable.name}"},
        definition=variable.query,
        current=everything if variable.several else None,
        multi=variable.several,
        include_all=variable.several,
        all_value=".+" if variable.several else None,
        refresh=grafana.VariableRefresh.ON_TIME_RANGE_CHANGED,
        sort=down if variable.newest_first else up,
    )


def _annotation(annotation: Annotation) -> grafana.AnnotationQuery:
    step = "10s"
    return grafana.AnnotationQuery(
        name=annotation.name,
        datasource=_SOURCE,
        enable=True,
        icon_color=annotation.color,
        target=prometheus.Dataquery(expr=annotation.expr, interval=step, ref_id="Anno", range_val=True),
        expr=annotation.expr,
        step=step,
        title_format=annotation.name,
        text_format=annotation.text,
    )
